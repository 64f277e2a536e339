package lag

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// SetPatience shortens how long a group must not have moved before it is stalled or stopped.
func (c *Collector) SetPatience(d time.Duration) { c.poller.patience = d }

// SetHooks lets the test see the requests. Call it before Run.
func (c *Collector) SetHooks(hooks ...kgo.Hook) { c.opts = append(c.opts, kgo.WithHooks(hooks...)) }

// RequestTimeout returns how long one request may take.
func (c *Collector) RequestTimeout() time.Duration { return c.requestTimeout() }
