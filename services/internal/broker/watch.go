package broker

import (
	"context"
	"errors"
	"fmt"

	"ordersystem.dev/services/internal/backoff"
)

// watchTopics looks the topics of a consumer up until one has another ID than ids returns for it.
// That topic was recreated: its offsets begin at 0 again, and librdkafka alone would go on at the
// old ones. It also notices when Kafka is back after the session had lost it. It returns nil when ctx
// ends.
func watchTopics(ctx context.Context, m *membership, ids func() map[string]string) error {
	logged := ""
	for backoff.Sleep(ctx, m.cc.TopicCheck) {
		infos, err := m.admin.Topics(ctx, m.cc.Topics...)
		missing, ok := errors.AsType[*MissingTopicsError](err)
		switch {
		case ok && missing.Error() != logged:
			logged = missing.Error()
			m.log.Error("topics to consume do not exist", "missing", missing.Names)
		case err == nil:
			logged = ""
			// In a quiet topic, nothing else shows that an outage is over.
			m.trouble.over()
			if len(m.holds()) == 0 {
				// No batch will show that the member works again: it has nothing to do.
				m.works()
			}
			if m.lost.Load() {
				return errReconnected
			}
		}
		known := ids()
		for name, info := range infos {
			if id := known[name]; id != "" && id != info.ID {
				return fmt.Errorf("topic %s was recreated: its ID was %s and is %s", name, id, info.ID)
			}
		}
	}
	return nil
}
