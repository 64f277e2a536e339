package web

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// commandPatience is how long the client of a command may take for a part of the response.
const commandPatience = 10 * time.Second

var errStopping = errors.New("the service is stopping")

// Command is work that a request begins and that takes long. Its response grows while it goes on. One is
// under way at a time. It ends with the connection of its client, and when the service stops. See
// [Ops.Commands].
type Command struct {
	busy string

	// one is held while the command is under way, and for good once the service stops.
	one sync.Mutex
	// stopping ends the command that is under way.
	stopping context.Context
	stop     context.CancelCauseFunc
}

// NewCommand returns a command that is not under way. busy is the response to a request while it is.
func NewCommand(busy string) *Command {
	c := &Command{busy: busy}
	c.stopping, c.stop = context.WithCancelCause(context.Background())
	return c
}

// Run waits until ctx ends, then ends the command that is under way, and waits for that. No other one
// begins after it.
func (c *Command) Run(ctx context.Context) error {
	<-ctx.Done()
	c.stop(errStopping)
	c.one.Lock()
	return nil
}

// Begin begins the command for a request, or refuses the request and returns false. The caller must call End
// of the response.
func (c *Command) Begin(w http.ResponseWriter, r *http.Request) (*CommandResponse, bool) {
	refuse := func(status int, text string) (*CommandResponse, bool) {
		Problem{Status: status, Text: text + "\n"}.Write(w, r)
		return nil, false
	}
	if err := context.Cause(c.stopping); err != nil {
		return refuse(http.StatusServiceUnavailable, err.Error())
	}
	if !c.one.TryLock() {
		return refuse(http.StatusConflict, c.busy)
	}
	response := &CommandResponse{w: w, control: http.NewResponseController(w)}
	// The time to read a request would end the wait for the end of the connection too.
	_ = response.control.SetReadDeadline(time.Time{})
	response.ctx, response.cancel = context.WithCancelCause(r.Context())
	detach := context.AfterFunc(c.stopping, func() { response.cancel(context.Cause(c.stopping)) })
	response.end = func() {
		detach()
		response.cancel(nil)
		c.one.Unlock()
	}
	return response, true
}

// CommandResponse is the response to a command that is under way. One goroutine at a time uses it.
type CommandResponse struct {
	w       http.ResponseWriter
	control *http.ResponseController
	ctx     context.Context
	cancel  context.CancelCauseFunc
	end     func()
}

// Context returns the context of the command. It ends with the connection, and when the service stops.
func (r *CommandResponse) Context() context.Context { return r.ctx }

// Write sends a part of the response at once. The context ends if the client does not take it.
func (r *CommandResponse) Write(part []byte) (int, error) {
	_ = r.control.SetWriteDeadline(time.Now().Add(commandPatience))
	n, err := r.w.Write(part)
	if err = errors.Join(err, r.control.Flush()); err != nil {
		r.cancel(err)
	}
	return n, err
}

// End ends the command. The next one may begin.
func (r *CommandResponse) End() { r.end() }
