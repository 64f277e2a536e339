package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
)

// Any number of replicas is one service. Clients reach them through a plain balancer, which repeats
// nothing, and record what they got. Nothing is lost, doubled or out of order, whatever happens to the
// replicas and to the database. What is planned does not even fail a request.
func TestReplicas(t *testing.T) {
	seed := seedOf(t)
	d := deploy(t, contract.Topics())
	d.scale(1)
	l := startLoad(t, d.carts.url(), d.orders.url(), seed, 8, 10*time.Millisecond, func(l *load) { l.wait = 30 })
	defer l.end()
	d.flows(l)
	planned := func(name string, change func()) {
		t.Run(name+" fails no request", func(t *testing.T) {
			// What failed before may still be under way.
			eventually(t, patience, "no request fails any more", func() (bool, string) {
				l.failures()
				time.Sleep(500 * time.Millisecond)
				failed := l.failures()
				return len(failed) == 0, fmt.Sprint(failed)
			})
			change()
			d.flows(l)
			failed := l.failures()
			for i, f := range failed {
				if i == 10 {
					t.Errorf("and %d more", len(failed)-i)
					break
				}
				t.Error(f)
			}
		})
	}
	planned("scaling from 1 to 3", func() { d.scale(3) })
	planned("a rolling restart", func() {
		d.carts.restart()
		d.orders.restart()
	})

	t.Run("another replica publishes soon after kill -9 of the one that did", func(t *testing.T) {
		const soon = 5 * time.Second
		took := quickest(3, soon, func() time.Duration {
			relay := d.relay()
			relay.kill()
			begin := time.Now()
			eventually(t, patience, "another Cart publishes", func() (bool, string) {
				now := d.relay()
				return now != relay, now.name
			})
			took := time.Since(begin)
			d.flows(l)
			t.Logf("orders flow %s after the kill", time.Since(begin).Round(time.Millisecond))
			relay.start().ready()
			return took
		})
		if took > soon {
			t.Errorf("another Cart publishes after %s, want %s at most", took, soon)
		}
	})
	t.Run("a relay that slept beyond its lease publishes nothing more", func(t *testing.T) {
		relay := d.relay()
		relay.signal(syscall.SIGSTOP)
		frozen(t, relay.cmd.Process.Pid)
		// They flow only when another Cart publishes.
		t.Logf("orders flow %s after the freeze", d.flows(l).Round(time.Millisecond))
		relay.signal(syscall.SIGCONT)
		relay.ready()
		d.flows(l)
	})
	t.Run("partitions of an Order that is killed are read by the others", func(t *testing.T) {
		p := d.orders.members()[0]
		p.kill()
		d.othersRead(p)
		d.flows(l)
		p.start().ready()
	})
	t.Run("an Order that slept beyond its session writes nothing that is old", func(t *testing.T) {
		p := d.orders.members()[1]
		p.signal(syscall.SIGSTOP)
		frozen(t, p.cmd.Process.Pid)
		d.othersRead(p)
		d.flows(l)
		p.signal(syscall.SIGCONT)
		p.ready()
	})

	t.Run("the standby takes over when the primary is killed, and no replica restarts", func(t *testing.T) {
		services := append(d.carts.members(), d.orders.members()...)
		begin := time.Now()
		d.database.fail()
		t.Logf("the standby was promoted after %s", time.Since(begin).Round(time.Millisecond))
		d.flows(l)
		t.Logf("orders flow %s after the kill", time.Since(begin).Round(time.Millisecond))
		d.carts.ready()
		d.orders.ready()
		for _, p := range services {
			if !p.running() {
				t.Errorf("%s has ended: %v", p.name, p.cmd.ProcessState)
			}
		}
	})
	planned("scaling from 3 to 1", func() { d.scale(1) })

	l.end()
	d.settle()
	d.end(l)
}
