package broker

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// newFranz returns a client of franz-go, for the few requests that librdkafka cannot make. The caller
// closes it.
func newFranz(cfg Config, more ...kgo.Opt) (*kgo.Client, error) {
	opts := append(cfg.Options(), kgo.RetryTimeout(adminTimeout), kgo.DisableClientMetrics())
	client, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return client, nil
}

// lookUp returns the metadata of topics by their names. That of a topic which does not exist has an
// error code.
func lookUp(
	ctx context.Context, client *kgo.Client, names []string,
) (map[string]kmsg.MetadataResponseTopic, error) {
	req := kmsg.NewPtrMetadataRequest()
	// nil would ask for all topics.
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = new(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("look up topics: %w", err)
	}
	topics := make(map[string]kmsg.MetadataResponseTopic, len(names))
	for _, t := range resp.Topics {
		if t.Topic != nil {
			topics[*t.Topic] = t
		}
	}
	return topics, nil
}
