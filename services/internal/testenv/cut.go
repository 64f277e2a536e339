package testenv

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/localkafka"
)

// Way leads from some processes to addresses of this machine.
type Way struct {
	// From is the ID of the group that these processes have, and no other process that uses the addresses.
	From uint32
	To   []string
}

// Between is the way from a broker to another one of its cluster. They need localkafka's Options.Groups.
func Between(from, to *localkafka.Broker) Way {
	return Way{From: from.Group(), To: []string{to.Addr, to.ControllerAddr}}
}

// CutsWays reports whether [Cut] can cut ways: for root on Linux, with iptables.
var CutsWays = sync.OnceValue(func() bool {
	nobody := []Way{{From: 1<<32 - 2, To: []string{"127.0.0.1:1"}}}
	ctx := context.Background()
	return filter(ctx, "-I", nobody) == nil && filter(ctx, "-D", nobody) == nil
})

// RequireCuts ends the test as [CannotRun] does if no way can be cut.
func RequireCuts(t testing.TB) {
	t.Helper()
	if !CutsWays() {
		CannotRun(t, "processes cannot be parted: only root on Linux can do that, with iptables")
	}
}

// Cut drops all that goes these ways for as long as during takes. Neither side learns of that. What comes
// back on connections of the other side is not dropped.
func Cut(t testing.TB, during func(), ways ...Way) {
	t.Helper()
	// The test's context ends before the last cleanups.
	ctx := context.WithoutCancel(t.Context())
	if err := filter(ctx, "-I", ways); err != nil {
		t.Fatalf("cut: %v", err)
	}
	defer func() {
		t.Helper()
		if err := filter(ctx, "-D", ways); err != nil {
			t.Errorf("mend what was cut: %v", err)
		}
	}()
	during()
}

// filter adds (-I) or deletes (-D) the rules that drop what goes these ways, all of them at once.
func filter(ctx context.Context, change string, ways []Way) error {
	var text strings.Builder
	text.WriteString("*filter\n")
	for _, way := range ways {
		for _, addr := range way.To {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return err
			}
			rule := fmt.Sprintf("%s OUTPUT -p tcp -d %s --dport %s -m owner ", change, host, port)
			fmt.Fprintf(&text, "%s--gid-owner %d -j DROP\n", rule, way.From)
			// A connection that was closed meanwhile has no owner any more. The kernel still sends what was
			// written before.
			text.WriteString(rule + "! --socket-exists -j DROP\n")
		}
	}
	cmd := exec.CommandContext(ctx, "iptables-restore", "--wait", "--noflush")
	text.WriteString("COMMIT\n")
	cmd.Stdin = strings.NewReader(text.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s", err, out)
	}
	return nil
}

// AwaitNews waits until each of the brokers knows something that the controller has decided since the call. A
// broker that was cut off responds with what it knew before, until it hears from the controller again.
func AwaitNews(t testing.TB, addrs ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	await := func(what string, try func() error) {
		t.Helper()
		for {
			err := try()
			if err == nil {
				return
			}
			if !backoff.Sleep(ctx, 50*time.Millisecond) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	news := contract.Topic{Name: "news-" + uuid.NewString(), Partitions: 1}
	await("create a topic", func() error {
		return localkafka.CreateTopics(ctx, addrs[0], []contract.Topic{news}, 1)
	})
	for _, addr := range addrs {
		await(addr+" knows the new topic", func() error {
			// The first request of a client goes to this address, and later ones to any broker.
			admin, err := kadm.NewOptClient(kgo.SeedBrokers(addr))
			if err != nil {
				return err
			}
			defer admin.Close()
			topics, err := admin.ListTopics(ctx, news.Name)
			if err != nil {
				return err
			}
			return topics.Error()
		})
	}
}
