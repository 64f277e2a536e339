package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Member is a member of a consumer group.
type Member struct {
	ClientID string
	// Host is the address of its client.
	Host string
	// Partitions is how many partitions it has.
	Partitions int
}

// members returns the members of a group with their partitions, of which those in except do not
// count. Members without any other are left out. It needs the permission to describe the group,
// which the one to join it implies.
//
// It asks with franz-go: librdkafka 2.15 aborts the process if such a request times out while it looks
// for the coordinator (assertion eonce->refcnt > 0).
func members(ctx context.Context, cfg Config, group string, except map[topicPartition]bool) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	client, err := newFranz(cfg)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = []string{group}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("describe group %s: %w", group, err)
	}
	var members []Member
	for _, d := range resp.Groups {
		err := kerr.ErrorForCode(d.ErrorCode)
		if errors.Is(err, kerr.GroupIDNotFound) {
			// Nobody has joined it yet.
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("describe group %s: %w", group, err)
		}
		for _, m := range d.Members {
			partitions := 0
			for _, t := range m.Assignment.TopicPartitions {
				for _, number := range t.Partitions {
					if !except[topicPartition{t.Topic, number}] {
						partitions++
					}
				}
			}
			if partitions > 0 {
				members = append(members, Member{ClientID: m.ClientID, Host: m.ClientHost, Partitions: partitions})
			}
		}
	}
	return members, nil
}
