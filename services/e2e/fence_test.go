package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// The network holds back version 3 of an order until Cart was killed and its successor has
// published versions 3, 4 and 5. Then it delivers the old request. The newest version is still the
// last record of the order: after compaction both stores are rebuilt from it.
func TestARequestThatOutlivesItsRelayIsRefused(t *testing.T) {
	t.Parallel()
	network := newNetwork(t)
	kafka := testenv.StartKafkaWith(t, localkafka.Options{Settings: map[string]string{
		"advertised.listeners": "PLAINTEXT://" + network.addr(),
		// By default compaction waits for 15 s.
		"log.cleaner.backoff.ms": "100",
	}})
	network.serve(kafka.Addr)
	declare(t, kafka.Addr, compactedAtOnce()...)
	cart, order := newCart(t, network.addr()), newOrder(t, network.addr())
	cart.start().ready()
	order.start().ready()
	cart.create("order")
	cart.update("order", "version 2")
	order.sees("order", 2, "version 2")

	late := network.holdNextProduce()
	cart.update("order", "version 3")
	<-late.held
	cart.kill()
	cart.start().ready()
	cart.update("order", "version 4")
	cart.update("order", "version 5")
	settle(t, kafka.Addr, cart, order)
	late.deliver(t)

	await := func() []string { return statuses(t, kafka.Addr, "order") }
	if got := await(); got[len(got)-1] != "version 5" {
		t.Errorf("the topics hold %q, want version 5 last", got)
	}
	compact(t, kafka.Addr, cart, order, func() (bool, string) {
		got := await()
		return len(got) <= 2, fmt.Sprintf("%q", got)
	})
	for _, p := range []*process{cart, order} {
		p.stop()
		if err := os.RemoveAll(p.dir); err != nil {
			t.Fatal(err)
		}
		p.start().ready()
	}
	if v := cart.update("order", "version 6"); v != 6 {
		t.Errorf("a rebuilt Cart gives version %d, want 6", v)
	}
	order.sees("order", 6, "version 6")
	cart.stop()
	order.stop()
}

// Two Carts with a store each give versions that collide. The first one ends when the second takes
// over, and says why.
func TestASecondCartTakesOver(t *testing.T) {
	t.Parallel()
	kafka, first, order := startSystem(t)
	first.create("order")
	order.sees("order", 1, contract.StatusNew)
	second := newCart(t, kafka.Addr)
	second.start().ready()
	second.create("other")
	order.sees("other", 1, contract.StatusNew)
	first.update("order", "after the takeover")
	first.ends(patience)
	if code := first.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("the first Cart ends with exit code %d, want 1", code)
	}
	if log := first.log(); !strings.Contains(log, "another process publishes to the same topics") ||
		!strings.Contains(log, contract.TransactionalIDsRelay[0]) {
		t.Errorf("the log of the first Cart does not say why it ended: %s", log)
	}
	second.stop()
	order.stop()
}

// statuses returns the statuses that the topics hold of an order: of its creation, and of its
// updates in the order of their records.
func statuses(t *testing.T, kafka, id string) (found []string) {
	t.Helper()
	for _, r := range readTopics(t, kafka) {
		if string(r.Key) != id {
			continue
		}
		e, err := faults.Parse(&r)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, e.Status)
	}
	return found
}

// compactedAtOnce returns the declared topics with settings that let compaction come at once: it
// never touches the segment that is written.
func compactedAtOnce() []contract.Topic {
	return topicsWith(map[string]string{
		"segment.ms": "300", "min.cleanable.dirty.ratio": "0.001", "min.compaction.lag.ms": "0",
	})
}

// deletable returns the declared topics with a policy that lets records be deleted, which the
// declared one does not.
func deletable() []contract.Topic {
	return topicsWith(map[string]string{"cleanup.policy": "compact,delete"})
}

// topicsWith returns the declared topics with other settings.
func topicsWith(settings map[string]string) []contract.Topic {
	topics := contract.Topics()
	for i := range topics {
		topics[i].Config = maps.Clone(topics[i].Config)
		maps.Copy(topics[i].Config, settings)
	}
	return topics
}

// compact writes other orders until compaction has done what done waits for. The first record after
// a segment's time closes it. Only then can the cleaner compact it.
func compact(t *testing.T, kafka string, cart, order *process, done func() (bool, string)) {
	t.Helper()
	fillers := 0
	eventually(t, 3*patience, "compaction removes what newer versions have replaced", func() (bool, string) {
		for range 24 {
			filler := fmt.Sprint("filler-", fillers)
			fillers++
			cart.update(filler, fmt.Sprint("v", cart.create(filler)+1))
		}
		settle(t, kafka, cart, order)
		return done()
	})
}

// network forwards connections to a broker. It can hold one request back, beyond the life of the
// client that sent it, or everything for a while.
type network struct {
	t        *testing.T
	listener net.Listener
	next     atomic.Pointer[lateRequest]
	// ways are those of all clients, and of has those of one service by its client ID.
	ways
	of map[string]*ways
}

// lateRequest is a request that the network holds back.
type lateRequest struct {
	// held is closed when the request has come.
	held chan struct{}
	// release lets it go on to the broker, and answered is closed when the broker has responded or
	// has closed the connection.
	release, answered chan struct{}
}

// deliver delivers the request, and waits until the broker has handled it.
func (l *lateRequest) deliver(t *testing.T) {
	t.Helper()
	close(l.release)
	select {
	case <-l.answered:
	case <-time.After(patience):
		t.Fatal("the broker does not respond to the late request")
	}
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	return &network{t: t, listener: listen(t), of: map[string]*ways{"cart": {}, "order": {}}}
}

func (n *network) addr() string { return n.listener.Addr().String() }

// holdNextProduce holds the next produce request back, of whichever connection.
func (n *network) holdNextProduce() *lateRequest {
	l := &lateRequest{held: make(chan struct{}), release: make(chan struct{}), answered: make(chan struct{})}
	n.next.Store(l)
	return l
}

// serve forwards connections to the broker at addr until the test ends.
func (n *network) serve(addr string) {
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			client, err := n.listener.Accept()
			if err != nil {
				return
			}
			broker, err := net.Dial("tcp", addr)
			if err != nil {
				client.Close()
				continue
			}
			n.t.Cleanup(func() { broker.Close() })
			connections.Go(func() { n.forward(client, broker) })
		}
	})
	n.t.Cleanup(connections.Wait)
	n.t.Cleanup(func() { n.listener.Close() })
}

// forward forwards one connection. A request that is held back goes to the broker even if the client
// is gone.
func (n *network) forward(client, broker net.Conn) {
	var responses sync.WaitGroup
	// own are the ways of the service that has this connection.
	var own atomic.Pointer[ways]
	// late is set when this connection has the request that was held back.
	var late atomic.Pointer[lateRequest]
	responses.Go(func() {
		defer client.Close()
		defer func() {
			if l := late.Load(); l != nil {
				close(l.answered)
			}
		}()
		for {
			response, err := frame(broker)
			if err != nil {
				return
			}
			if l := late.Swap(nil); l != nil {
				close(l.answered)
			}
			n.responses.pass()
			if w := own.Load(); w != nil {
				w.responses.pass()
			}
			// A client that is gone gets no response.
			_, _ = client.Write(response)
		}
	})
	defer responses.Wait()
	defer broker.Close()
	for {
		request, err := frame(client)
		if err != nil {
			return
		}
		const produce = 0
		if binary.BigEndian.Uint16(request[4:]) == produce {
			if l := n.next.Swap(nil); l != nil {
				close(l.held)
				// If the test fails, nobody releases it, or the broker has closed the connection before.
				select {
				case <-l.release:
				case <-n.t.Context().Done():
					return
				}
				late.Store(l)
				defer func() {
					select {
					case <-l.answered:
					case <-n.t.Context().Done():
					}
				}()
			}
		}
		n.requests.pass()
		if w := n.of[clientID(request)]; w != nil {
			own.Store(w)
			w.requests.pass()
		}
		if _, err := broker.Write(request); err != nil {
			return
		}
	}
}

// clientID returns the name that the client gives itself in a request.
func clientID(request []byte) string {
	// Before it come the length of all, what is asked for, its version, a number, and the length of the ID.
	const begin = 4 + 2 + 2 + 4 + 2
	if len(request) < begin {
		return ""
	}
	// The length of none is -1.
	size := int(int16(binary.BigEndian.Uint16(request[begin-2:])))
	return string(request[begin:][:max(0, min(size, len(request)-begin))])
}

// frame reads one request or response of Kafka's protocol, with the length in front of it.
func frame(from io.Reader) ([]byte, error) {
	header := make([]byte, 4)
	if _, err := io.ReadFull(from, header); err != nil {
		return nil, err
	}
	const most = 100 << 20
	size := binary.BigEndian.Uint32(header)
	if size < 4 || size > most {
		return nil, errors.New("this is not Kafka's protocol")
	}
	message := append(header, make([]byte, size)...)
	_, err := io.ReadFull(from, message[4:])
	return message, err
}
