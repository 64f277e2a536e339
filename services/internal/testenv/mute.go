package testenv

import (
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// MuteFetches makes a fake Kafka take fetches and never respond to them: clients see that it is there
// and get no record. The channel is closed at the first fetch.
func MuteFetches(kafka *kfake.Cluster) (fetched <-chan struct{}) {
	first := make(chan struct{})
	once := sync.OnceFunc(func() { close(first) })
	kafka.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		kafka.KeepControl()
		once()
		return nil, nil, true
	})
	return first
}

// DelayMetadata makes a fake Kafka respond to no look-up of its topics before a time from now on.
func DelayMetadata(kafka *kfake.Cluster, by time.Duration) {
	end := time.Now().Add(by)
	kafka.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		kafka.KeepControl()
		kafka.SleepControl(func() { time.Sleep(time.Until(end)) })
		return nil, nil, false
	})
}
