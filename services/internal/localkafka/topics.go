package localkafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
)

// topicsPatience limits how long CreateTopics waits for the leaders of the topics.
const topicsPatience = 60 * time.Second

// CreateTopics makes the topics that are missing and waits until clients can use them. It returns
// an error for a topic that exists with other settings. It never alters one: more partitions would
// move keys to other partitions.
func CreateTopics(ctx context.Context, addr string, topics []contract.Topic, replication int16) error {
	admin, err := newAdmin(addr)
	if err != nil {
		return err
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(ctx, topicsPatience)
	defer cancel()
	var all []error
	for _, topic := range topics {
		if err := createTopic(ctx, admin, topic, replication); err != nil {
			all = append(all, fmt.Errorf("create topic %s: %w", topic.Name, err))
		}
	}
	return errors.Join(all...)
}

// createTopic makes one topic, or checks the one that exists.
func createTopic(ctx context.Context, admin *kadm.Client, topic contract.Topic, replication int16) error {
	config := make(map[string]*string)
	for name, value := range topic.Config {
		config[name] = &value
	}
	made, err := admin.CreateTopic(ctx, int32(topic.Partitions), replication, config, topic.Name)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	for {
		partitions, err := awaitTopic(ctx, admin, topic.Name, made.ID)
		if err != nil {
			return err
		}
		err = checkTopic(ctx, admin, topic, partitions)
		// Each request asks any broker, and one of them may not know the topic yet.
		if !errors.Is(err, kerr.UnknownTopicOrPartition) || !backoff.Sleep(ctx, 10*time.Millisecond) {
			return err
		}
	}
}

// awaitTopic waits until the broker knows the topic with all its leaders, and returns the number of
// partitions. A broker learns of a topic after the controller has responded. If id is not zero,
// awaitTopic ignores another topic of the same name that was deleted just before.
func awaitTopic(ctx context.Context, admin *kadm.Client, name string, id kadm.TopicID) (partitions int, err error) {
	for {
		topics, err := admin.ListTopics(ctx, name)
		if err != nil {
			return 0, err
		}
		topic := topics[name]
		led := topic.Err == nil
		for _, p := range topic.Partitions {
			led = led && p.Err == nil && p.Leader >= 0
		}
		if led && (id == kadm.TopicID{} || id == topic.ID) {
			return len(topic.Partitions), nil
		}
		if !backoff.Sleep(ctx, 10*time.Millisecond) {
			return 0, fmt.Errorf("wait for its leaders: %w", cmp.Or(topic.Err, ctx.Err()))
		}
	}
}

// checkTopic returns an error that lists how a topic differs from its declaration.
func checkTopic(ctx context.Context, admin *kadm.Client, want contract.Topic, partitions int) error {
	configs, err := admin.DescribeTopicConfigs(ctx, want.Name)
	if err != nil {
		return err
	}
	config, err := configs.On(want.Name, nil)
	if err = cmp.Or(err, config.Err); err != nil {
		return err
	}
	var differs []string
	if partitions != want.Partitions {
		differs = append(differs, fmt.Sprintf("it has %d partitions, declared are %d", partitions, want.Partitions))
	}
	for _, c := range config.Configs {
		if value, declared := want.Config[c.Key]; declared && c.MaybeValue() != value {
			differs = append(differs, fmt.Sprintf("its %s is %q, declared is %q", c.Key, c.MaybeValue(), value))
		}
	}
	if differs != nil {
		return errors.New("it exists with other settings: " + strings.Join(differs, "; "))
	}
	return nil
}

// DeleteTopic deletes a topic and its records.
func DeleteTopic(ctx context.Context, addr, name string) error {
	admin, err := newAdmin(addr)
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.DeleteTopic(ctx, name); err != nil {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	return nil
}
