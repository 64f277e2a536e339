package e2e

import (
	"bufio"
	"bytes"
	"database/sql"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/testenv"
)

// Requests with the largest headers and bodies, on more connections than Cart takes, leave it within
// the memory limit of its chart. The store is locked until all are sent, so that none is done before.
func TestLargestRequestsFitIntoTheMemoryLimit(t *testing.T) {
	memory := chartsMemory(t)["cart"]
	cart := newCart(t, testenv.Fake(t), "GOMEMLIMIT="+memory.goLimit,
		// The images have another C library, which has one heap for all threads.
		"MALLOC_ARENA_MAX=1").lean()
	cart.start().ready()

	headers := largestHeader(cart)
	db, err := sql.Open("sqlite3", filepath.Join(cart.dir, "cart.db")+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	const clients = 4096
	var sent, accepted atomic.Int64
	var all errgroup.Group
	for n := range clients {
		all.Go(func() error {
			conn, err := net.Dial("tcp", strings.TrimPrefix(cart.api, "http://"))
			if err != nil {
				return err
			}
			defer conn.Close()
			body := fmt.Appendf(nil, `{"orderId":"order-%d","itemsNum":1000,"x":"`, n)
			body = append(body, bytes.Repeat([]byte("x"), 65_000-len(body))...)
			body = append(body, `"}`...)
			if _, err := fmt.Fprintf(conn, "POST /order/create-order HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+
				"X: %s\r\nContent-Length: %d\r\n\r\n%s", headers, len(body), body); err != nil {
				return err
			}
			sent.Add(1)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				accepted.Add(1)
			}
			return nil
		})
	}
	// Those that are over the limit on connections may not be able to send all.
	before := int64(0)
	eventually(t, time.Minute, "no more is sent", func() (bool, string) {
		time.Sleep(time.Second)
		now := sent.Load()
		done := now > 0 && now == before
		before = now
		return done, fmt.Sprint(now)
	})
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	// Some may lose their connections to others that wait.
	if err := all.Wait(); err != nil {
		t.Log(err)
	}
	if n := accepted.Load(); n < clients/4 {
		t.Errorf("%d requests of %d were accepted: there was hardly any load", n, clients)
	}
	fits(t, cart, memory)
}

// largestHeader returns the largest value of a header, in steps of 1 KiB, that the service takes.
func largestHeader(p *process) (largest string) {
	for {
		next := largest + strings.Repeat("x", 1024)
		// A service that refuses headers closes the connection at once, which may break it.
		// The other headers need some room too, and so does what is read ahead of the body.
		got, err := send(http.MethodGet, p.api+"/", "", "X", next+strings.Repeat("x", 5000))
		if err != nil || got.status == http.StatusRequestHeaderFieldsTooLarge {
			return largest
		}
		largest = next
	}
}
