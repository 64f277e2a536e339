package lag

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// SetPatience shortens how long a group may do nothing before that is told.
func (c *Collector) SetPatience(d time.Duration) { c.patience = d }

// SetHooks shows the test what is asked of the brokers.
func (c *Collector) SetHooks(hooks ...kgo.Hook) { c.opts = append(c.opts, kgo.WithHooks(hooks...)) }
