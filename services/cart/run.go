// Package cart is the Cart service. It takes orders over HTTP, stores each with its event in one
// transaction, and publishes the events to Kafka in order. It does not consume: what became of an
// order downstream is known to the Order service.
package cart

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/inventory"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/sqldb"
)

// Run runs the service until ctx ends or something fails for good. If started is not nil, Run calls
// it with the addresses once both are bound.
func Run(ctx context.Context, cfg Config, log *slog.Logger, started func(api, ops net.Addr)) (err error) {
	svc, err := service.New(service.Config{
		Endpoints: cfg.Endpoints, OpenAPI: contract.CartOpenAPI, AsyncAPI: contract.AsyncAPI,
	}, log)
	if err != nil {
		return err
	}
	defer svc.Close()
	cfg.Kafka.ClientID, cfg.Kafka.Stats = "cart", broker.NewStats()
	svc.Registry.MustRegister(cfg.Kafka.Stats)

	var store *store
	if err := svc.Prepare(ctx, func(ctx context.Context) error {
		return sqldb.Await(ctx, log, svc.Ready.Set, func() (err error) {
			store, err = openStore(ctx, cfg.DatabaseURL, cfg.DataDir, orderTopics(cfg.Kafka), log, svc.Registry)
			return err
		})
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	limit := room{events: int64(cfg.MaxBacklog), bytes: int64(cfg.MaxBacklogBytes)}
	commits := newCommitter(store, limit, log, svc.Registry)
	// A database that responds may still refuse or withhold what is written: only the committer finds out.
	usable := func() error { return cmp.Or(store.db.Err(), commits.err()) }
	svc.Registry.MustRegister(sqldb.NewCollector(store.db, "cart", usable))
	// What keeps a shared database away keeps it away from all replicas. If all of them left their Service,
	// clients would see refused connections instead of 503 with Retry-After.
	if !store.db.Shared() {
		svc.Ready.AddCheck(usable)
	}

	admin, err := broker.NewAdmin(cfg.Kafka, log)
	if err != nil {
		return err
	}
	defer admin.Close()

	srv := &server{commits: commits, auth: svc.Auth, log: log}
	handler := srv.handler(svc.Registry)
	reconciler := newReconciler(cfg.Kafka, admin, store, log, svc.Registry)
	svc.Ready.AddCheck(reconciler.err)
	republisher := newRepublisher(store, reconciler, limit, log)
	svc.Commands = map[string]http.Handler{"/republish": republisher}
	svc.Listings = map[string]http.Handler{inventory.Path: newInventory(store, reconciler, log)}
	preparation := &preparation{
		kafka: cfg.Kafka, admin: admin, store: store, reconciler: reconciler,
		doubtful: newDoubtful(svc.Registry), log: log,
	}

	// Nothing that was accepted is left behind: each stage ends after the one before it.
	return svc.Run(ctx, started,
		// The API stops accepting and drains.
		service.Stage{
			func(ctx context.Context) error { return svc.ServeAPI(ctx, handler) },
			func(ctx context.Context) error { return preparation.run(ctx, svc.Ready, srv.openAPI) },
			preparation.follow,
			republisher.command.Run,
			reconciler.watch,
		},
		// The committer writes what is queued.
		service.Stage{commits.run, store.db.Watch},
		// The relay publishes what is stored.
		service.Stage{func(ctx context.Context) error {
			return store.box.Relay(ctx, outbox.Target{
				Kafka: cfg.Kafka, TransactionalIDs: contract.TransactionalIDsRelay,
				Topics: contract.OrderTopics(),
			}, reconciler.run)
		}},
	)
}
