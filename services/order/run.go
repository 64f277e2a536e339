// Package order is the Order service. It folds the order topics into a store of its own, responds
// to look-ups from that store, and audits the topics by reading them.
package order

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/inventory"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/rebuild"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/skip"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/order/audit"
)

// stopPatience is how long requests may still wait when the service stops. The order of a look-up mostly
// comes within milliseconds, within seconds while partitions move to another member, and at the latest
// after the session of a member that was killed. What is left of Drain is for the responses.
const stopPatience = web.Drain - 2*time.Second

// auditPace is how fast a client must take the result of an audit: 1 MiB a second after 30 s, and
// after 2 s if another audit waits. A client on a bad network needs that time for lost packets.
var auditPace = web.Pace{Grace: 30 * time.Second, ShortGrace: 2 * time.Second, Rate: 1 << 20}

// Run runs the service until ctx ends or something fails for good. If started is not nil, Run calls
// it with the addresses once both are bound.
func Run(ctx context.Context, cfg Config, log *slog.Logger, started func(api, ops net.Addr)) (err error) {
	svc, err := service.New(service.Config{
		Endpoints: cfg.Endpoints, OpenAPI: contract.OrderOpenAPI, AsyncAPI: contract.AsyncAPI,
	}, log)
	if err != nil {
		return err
	}
	defer svc.Close()
	cfg.Kafka.ClientID, cfg.Kafka.Stats = "order", broker.NewStats()
	svc.Registry.MustRegister(cfg.Kafka.Stats)

	topics := cfg.Kafka.Names(contract.OrderTopics())
	var store *store
	if err := svc.Prepare(ctx, func(ctx context.Context) error {
		return sqldb.Await(ctx, log, svc.Ready.Set, func() (err error) {
			store, err = openStore(ctx, cfg.DatabaseURL, cfg.DataDir, topics, log, svc.Registry)
			return err
		})
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	// Whoever meets a damaged batch asks the store: see skipper.
	cfg.Kafka.SkipDamaged = store.skips

	admin, err := broker.NewAdmin(cfg.Kafka, log)
	if err != nil {
		return err
	}
	defer admin.Close()

	source := audit.Kafka(cfg.Kafka, admin, log)
	auditor, err := audit.New(
		ctx, filepath.Join(cfg.DataDir, "audit"), int64(cfg.AuditCacheBytes), source, svc.Registry, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, auditor.Close()) }()

	// The consumer writes into the store; it wakes the look-ups, and lets the service become ready.
	// Look-ups that wait leave half of the connections to all other requests.
	letters := cfg.Kafka.Name(contract.TopicDeadLetter)
	lookups, catching := newWaiters(web.APIConnections()/2, svc.Registry), newCatchUp()
	handler := newTopicConsumer(store, lookups, catching, newMetrics(svc.Registry), log,
		logs{admin.Bounds, admin.Replaced}, auditor.Shed)
	member := broker.NewConsumer(cfg.Kafka, broker.ConsumerConfig{
		Group: cfg.Kafka.Name(contract.GroupOrder), Topics: topics,
	}, admin, log)
	shares := &sharing{assigned: member.Assigned, others: member.Others, wanted: store.db.Shared(), log: log}
	svc.Registry.MustRegister(memberMetrics{member, shares})

	svc.Listings = map[string]http.Handler{inventory.Path: newInventory(store, catching, admin, log)}
	rebuilder := newRebuilder(store, catching, lookups, admin.Bounds, source.Read, log)
	skipper := newSkipper(store, func(
		ctx context.Context, p broker.Partition, offset int64,
	) (*broker.DamagedError, error) {
		return broker.FindDamage(ctx, cfg.Kafka, p, offset)
	}, log)
	svc.Commands = map[string]http.Handler{rebuild.Path: rebuilder, skip.Path: skipper}

	// Once it has caught up, the service stays ready, even if the consumer or the database fails.
	svc.Ready.Set(nil)
	svc.Ready.AddCheck(catching.ready)
	svc.Ready.AddCheck(func() error {
		if catching.ready() == nil {
			return nil
		}
		return cmp.Or(store.db.Err(), member.Err())
	})

	// From the outside in: each stage ends after the one before it.
	return svc.Run(ctx, started,
		// The API ends connections, stops accepting, ends requests that wait, and drains.
		service.Stage{
			func(ctx context.Context) error {
				stopping, end := context.WithCancel(context.WithoutCancel(ctx))
				defer end()
				defer context.AfterFunc(ctx, func() { time.AfterFunc(stopPatience, end) })()
				api := &server{
					store: store, catchUp: catching, waiters: lookups, auditor: auditor, auth: svc.Auth, log: log,
					stopping: stopping, pace: auditPace,
				}
				return svc.ServeAPI(ctx, api.handler(svc.Registry))
			},
			func(ctx context.Context) error { return catching.run(ctx, admin, store, letters, shares, log) },
			rebuilder.command.Run,
			skipper.command.Run,
		},
		// The consumer finishes its batch, and the relay publishes the dead letters that it can.
		service.Stage{
			func(ctx context.Context) error { member.Run(ctx, handler); return nil },
			func(ctx context.Context) error {
				return store.box.Relay(ctx, outbox.Target{
					Kafka: cfg.Kafka, TransactionalIDs: contract.TransactionalIDsDeadLetters,
					Topics: []string{contract.TopicDeadLetter},
				}, nil)
			},
			func(ctx context.Context) error {
				if !store.db.Shared() {
					// Only this process writes, and wakes the look-ups itself.
					return nil
				}
				return lookups.follow(ctx, store)
			},
			store.db.Watch,
		},
	)
}
