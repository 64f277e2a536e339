package operator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ordersystem.dev/services/lag/config"
)

// kafkaTopic is a topic as Strimzi sees it.
type kafkaTopic struct {
	// object is the name of the KafkaTopic.
	object string
	// ready is the status of its condition Ready. It is empty if Strimzi has not set one, as for a
	// KafkaTopic that it does not manage.
	ready           metav1.ConditionStatus
	reason, message string
}

// strimzi watches the KafkaTopics of one Kafka cluster, if Strimzi's CRD is installed. It reads
// them without Strimzi's types, because only a few fields count, which are the same in all its
// versions.
//
// A nil *strimzi has no KafkaTopics. Its methods are for one goroutine at a time.
type strimzi struct {
	kind   schema.GroupKind
	log    *slog.Logger
	mapper meta.RESTMapper
	cache  cache.Cache

	// found is empty until the CRD was seen.
	found schema.GroupVersionKind
	// again is when to look for the CRD the next time.
	again time.Time
}

// newStrimzi prepares the watch of the KafkaTopics that t selects. It begins when cache runs.
func newStrimzi(
	t config.KafkaTopics, kube *rest.Config, httpClient *http.Client, mapper meta.RESTMapper, log *slog.Logger,
) (*strimzi, error) {
	selector := labels.SelectorFromSet(labels.Set{"strimzi.io/cluster": t.Cluster})
	c, err := cache.New(kube, cache.Options{
		HTTPClient:        httpClient,
		Mapper:            mapper,
		DefaultNamespaces: map[string]cache.Config{t.Namespace: {LabelSelector: selector}},
		DefaultTransform:  cache.TransformStripManagedFields(),
	})
	if err != nil {
		return nil, fmt.Errorf("watch the KafkaTopics in %s: %w", t.Namespace, err)
	}
	kind := schema.GroupKind{Group: "kafka.strimzi.io", Kind: "KafkaTopic"}
	return &strimzi{kind: kind, log: log, mapper: mapper, cache: c}, nil
}

// sync waits for the first list of KafkaTopics, for 5 s at most: an operator that may not read
// KafkaTopics would wait for ever.
func (s *strimzi) sync(ctx context.Context) {
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if topics, err := s.topics(ctx, time.Now()); topics != nil || err != nil || s.found.Empty() {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// topics returns the KafkaTopics as they are now, by the name of the topic in Kafka. It returns nil
// if the CRD is not installed, or if the first list is not there yet. It does not wait.
func (s *strimzi) topics(ctx context.Context, now time.Time) (map[string]kafkaTopic, error) {
	if s == nil || !s.exists(now) {
		return nil, nil
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(s.found)
	informer, err := s.cache.GetInformer(ctx, object, cache.BlockUntilSynced(false))
	if err != nil || !informer.HasSynced() {
		// As long as it cannot list them, client-go logs why.
		return nil, err
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(s.found.GroupVersion().WithKind(s.found.Kind + "List"))
	if err := s.cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list KafkaTopics: %w", err)
	}
	return byTopic(list.Items), nil
}

// exists reports whether the CRD is installed. It looks again once a minute, because Strimzi may be
// installed later.
func (s *strimzi) exists(now time.Time) bool {
	if !s.found.Empty() {
		return true
	}
	if now.Before(s.again) {
		return false
	}
	first := s.again.IsZero()
	s.again = now.Add(time.Minute)
	mapping, err := s.mapper.RESTMapping(s.kind)
	if err != nil {
		if first || !meta.IsNoMatchError(err) {
			s.log.Warn("KafkaTopics are not installed: Kafka alone decides whether topics are ready", "err", err)
		}
		return false
	}
	s.found = mapping.GroupVersionKind
	return true
}

// byTopic returns KafkaTopics by the name of their topic in Kafka. If several claim one topic, the
// ready one counts: Strimzi serves the first of them, and the others are not ready.
func byTopic(objects []unstructured.Unstructured) map[string]kafkaTopic {
	topics := map[string]kafkaTopic{}
	for _, o := range objects {
		name, t := readKafkaTopic(o.Object)
		if known, ok := topics[name]; !ok || known.ready != metav1.ConditionTrue {
			topics[name] = t
		}
	}
	return topics
}

// readKafkaTopic returns the topic's name in Kafka, and what Strimzi reports of it.
func readKafkaTopic(object map[string]any) (name string, t kafkaTopic) {
	t.object, _, _ = unstructured.NestedString(object, "metadata", "name")
	name, _, _ = unstructured.NestedString(object, "spec", "topicName")
	name = cmp.Or(name, t.object)
	conditions, _, _ := unstructured.NestedSlice(object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "Ready" {
			status, _ := c["status"].(string)
			t.ready = metav1.ConditionStatus(status)
			t.reason, _ = c["reason"].(string)
			t.message, _ = c["message"].(string)
		}
	}
	return name, t
}
