package operator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ordersystem.dev/services/operator/api/v1alpha1"
)

// kafkaTopic is a topic as Strimzi sees it.
type kafkaTopic struct {
	object          string                 // the KafkaTopic's name
	ready           metav1.ConditionStatus // empty: Strimzi does not say, as of one that it does not manage
	reason, message string
}

// strimzi watches the KafkaTopics of one Kafka cluster, where Strimzi's CRD exists. They are read as they come, without Strimzi's types:
// only a few fields count, which have been the same in all its versions.
type strimzi struct {
	kind   schema.GroupKind
	log    *slog.Logger
	mapper meta.RESTMapper
	cache  cache.Cache

	found schema.GroupVersionKind // once the CRD was seen
	again time.Time               // when to look for it the next time
}

func newStrimzi(t KafkaTopics, kube *rest.Config, httpClient *http.Client, mapper meta.RESTMapper, log *slog.Logger) (*strimzi, error) {
	c, err := cache.New(kube, cache.Options{
		HTTPClient:        httpClient,
		Mapper:            mapper,
		DefaultNamespaces: map[string]cache.Config{t.Namespace: {LabelSelector: labels.SelectorFromSet(labels.Set{"strimzi.io/cluster": t.Cluster})}},
		DefaultTransform:  cache.TransformStripManagedFields(),
	})
	if err != nil {
		return nil, fmt.Errorf("watch the KafkaTopics in %s: %w", t.Namespace, err)
	}
	return &strimzi{kind: schema.GroupKind{Group: "kafka.strimzi.io", Kind: "KafkaTopic"}, log: log, mapper: mapper, cache: c}, nil
}

// topics returns the KafkaTopics as they are now, by the name of the topic in Kafka; nil when there is nobody to ask. It does not wait.
func (s *strimzi) topics(ctx context.Context, now time.Time) (map[string]kafkaTopic, error) {
	if s == nil || !s.exists(now) {
		return nil, nil
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(s.found)
	informer, err := s.cache.GetInformer(ctx, object, cache.BlockUntilSynced(false))
	if err != nil || !informer.HasSynced() { // client-go logs why, for as long as that is so
		return nil, err
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(s.found.GroupVersion().WithKind(s.found.Kind + "List"))
	if err := s.cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list KafkaTopics: %w", err)
	}
	return byTopic(list.Items), nil
}

// byTopic sorts KafkaTopics by the name of their topic. Several may claim one: Strimzi serves the first, and the others are not ready.
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

// sync waits for the first list, but not for long: whoever may not read KafkaTopics would wait for ever.
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

// exists says whether the cluster has the CRD, and looks again each minute: Strimzi may be installed later.
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
			s.log.Warn("no KafkaTopics here; whether topics are ready is asked of Kafka", "err", err)
		}
		return false
	}
	s.found = mapping.GroupVersionKind
	return true
}

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

// Who says whether a topic is ready.
const (
	fromStrimzi = "KafkaTopic"
	fromKafka   = "Kafka"
)

// topics says of each topic whether it can be used.
func (o *observation) topics() {
	by := map[metav1.ConditionStatus][]v1alpha1.TopicStatus{}
	for _, name := range o.names {
		t := o.topic(name)
		if o.group != nil && o.group.Topics[name] != nil && !o.partial(o.cg.Spec.Group, name) {
			for _, p := range o.group.Topics[name].Partitions {
				if p.Committed < 0 {
					continue
				}
				if t.Lag == nil {
					t.Lag, t.LagSeconds = new(int64), new(int64)
				}
				*t.Lag += p.Records
				*t.LagSeconds = max(*t.LagSeconds, seconds(p.Age))
			}
		}
		by[t.Ready] = append(by[t.Ready], t)
	}
	bad, unknown := by[metav1.ConditionFalse], by[metav1.ConditionUnknown]
	all := slices.Concat(bad, unknown, by[metav1.ConditionTrue])
	o.status.Topics = slices.Clone(all[:min(len(all), maxTopics)])
	slices.SortFunc(o.status.Topics, func(a, b v1alpha1.TopicStatus) int { return strings.Compare(a.Name, b.Name) })

	switch {
	case o.unknownCluster() || len(all) == 0:
		o.unknown(v1alpha1.TopicsReady)
	case len(bad) > 0:
		reason := bad[0].Reason
		if slices.ContainsFunc(bad, func(t v1alpha1.TopicStatus) bool { return t.Reason != reason }) {
			reason = notReady
		}
		o.set(v1alpha1.TopicsReady, metav1.ConditionFalse, reason, "%s: %s", list(bad, len(all), "not ready"), bad[0].Message)
	case len(unknown) > 0:
		o.set(v1alpha1.TopicsReady, metav1.ConditionUnknown, unknown[0].Reason, "%s: %s", list(unknown, len(all), "not known"), unknown[0].Message)
	default:
		o.set(v1alpha1.TopicsReady, metav1.ConditionTrue, "AllReady", "%s", plural(len(all), "topic is ready", "topics are ready"))
	}
}

// maxTopics is how many topics a status lists.
const maxTopics = 100

// Reasons why a topic is not ready.
const (
	notReady = "NotReady"
	notFound = "NotFound"
)

func list(topics []v1alpha1.TopicStatus, of int, what string) string {
	more := ""
	if n := len(topics) - 1; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("of %s, %s%s %s", plural(of, "topic", "topics"), topics[0].Name, more, what)
}

// topic says whether a topic can be used. Strimzi knows why one could not be made as it is declared; Kafka knows whether it is there
// now, and led. Both have to agree that it is ready.
func (o *observation) topic(name string) v1alpha1.TopicStatus {
	t := v1alpha1.TopicStatus{Name: name}
	is := func(source string, ready metav1.ConditionStatus, reason, message string) v1alpha1.TopicStatus {
		t.Source, t.Ready, t.Reason, t.Message = source, ready, reason, message
		return t
	}
	declared, isDeclared := o.strimzi[name]
	if isDeclared && declared.ready == metav1.ConditionFalse {
		return is(fromStrimzi, metav1.ConditionFalse, reasonOf(declared.reason, notReady),
			fmt.Sprintf("KafkaTopic %s is not ready: %s", declared.object, cmp.Or(declared.message, declared.reason)))
	}
	if o.snapshot == nil || o.unreachable != "" {
		if isDeclared && declared.ready == metav1.ConditionTrue {
			return is(fromStrimzi, metav1.ConditionTrue, "", "")
		}
		reason, message := o.why()
		return is("", metav1.ConditionUnknown, reason, message)
	}
	inKafka := o.snapshot.Topics[name]
	switch why := o.unreadable("", name); {
	case inKafka == nil && why != "":
		return is(fromKafka, metav1.ConditionUnknown, unreadable, why)
	case inKafka == nil && isDeclared:
		return is(fromKafka, metav1.ConditionFalse, notFound,
			fmt.Sprintf("KafkaTopic %s is there and its topic is not (yet): if that lasts, see whether Strimzi's topic operator runs", declared.object))
	case inKafka == nil:
		return is(fromKafka, metav1.ConditionFalse, notFound, "Kafka has no such topic, or the operator may not Describe it: create it, or correct spec.topics")
	case !inKafka.Ready:
		return is(fromKafka, metav1.ConditionFalse, notReady, "a partition has no leader that answers: see whether all brokers run")
	case isDeclared && declared.ready == metav1.ConditionTrue:
		return is(fromStrimzi, metav1.ConditionTrue, "", "")
	}
	return is(fromKafka, metav1.ConditionTrue, "", "")
}
