package inventory

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/web"
)

const (
	// pageOrders is how many orders are read at once. No read holds the database for long.
	pageOrders = 1000
	// pagePatience is how long the client may take for a page.
	pagePatience = 10 * time.Second
)

var errBusy = errors.New("another inventory is being read")

// Server serves the inventory of a store. Its table orders has the columns order_id, version and body.
type Server struct {
	DB *sqldb.DB
	// Before is called before the store is read: the response has everything that has happened before.
	// After is called behind that: once the response is whole, everything that it has is where After says.
	// Either may be nil. An error of theirs is for the operator.
	Before, After func(ctx context.Context) error
	Log           *slog.Logger

	// one is held during a response: reading all orders is work.
	one sync.Mutex
}

// ServeHTTP responds with the inventory.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ids, err := contract.ParseOrderIDs(r.URL.RawQuery, MostOrders)
	if err != nil {
		web.Problem{Status: http.StatusBadRequest, Text: err.Error() + "\n"}.Write(w, r)
		return
	}
	refuse := func(err error) {
		text := err.Error() + "\n"
		web.Problem{Status: http.StatusServiceUnavailable, Text: text, RetryAfter: time.Second}.Write(w, r)
	}
	if !s.one.TryLock() {
		refuse(errBusy)
		return
	}
	defer s.one.Unlock()
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(Patience + pagePatience))
	if s.Before != nil {
		if err := s.Before(r.Context()); err != nil {
			refuse(err)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := bufio.NewWriterSize(w, 64<<10)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	var orders int64
	write := func(page []Entry) error {
		_ = control.SetWriteDeadline(time.Now().Add(pagePatience))
		for i := range page {
			if err := lines.Encode(line{Entry: &page[i]}); err != nil {
				return err
			}
		}
		orders += int64(len(page))
		return nil
	}
	if len(ids) > 0 {
		err = s.some(r.Context(), ids, write)
	} else {
		err = s.all(r.Context(), write)
	}
	if err == nil && s.After != nil {
		_ = control.SetWriteDeadline(time.Now().Add(Patience + pagePatience))
		err = s.After(r.Context())
	}
	end := line{Orders: &orders}
	if err != nil {
		s.Log.Warn("an inventory of the store is not whole", "orders", orders, "err", err)
		end = line{Error: err.Error()}
	}
	// An error here means that the client has gone.
	_ = lines.Encode(end)
	_ = out.Flush()
}

// all writes all orders. One that is added meanwhile may be missing.
func (s *Server) all(ctx context.Context, write func([]Entry) error) error {
	page := make([]Entry, 0, pageOrders)
	for after := ""; ; {
		page = page[:0]
		const query = "SELECT order_id, version, body FROM orders WHERE order_id > ? ORDER BY order_id LIMIT ?"
		err := s.DB.Query(ctx, query, scanInto(&page), after, pageOrders)
		if err != nil {
			return fmt.Errorf("read the orders behind %q: %w", after, err)
		}
		if len(page) == 0 {
			return nil
		}
		if err := write(page); err != nil {
			return err
		}
		after = page[len(page)-1].OrderID
	}
}

// some writes those of the orders that the store has.
func (s *Server) some(ctx context.Context, ids []string, write func([]Entry) error) error {
	keys := make([]any, len(ids))
	for i, id := range ids {
		keys[i] = id
	}
	var page []Entry
	err := s.DB.QueryIn(ctx, "SELECT order_id, version, body FROM orders WHERE order_id IN ", keys, "", scanInto(&page))
	if err != nil {
		return fmt.Errorf("read %d orders: %w", len(ids), err)
	}
	return write(page)
}

// scanInto returns what adds a row to the page.
func scanInto(page *[]Entry) func(*sql.Rows) error {
	// Valid during the call only, and so without a copy.
	var body sql.RawBytes
	return func(rows *sql.Rows) error {
		var e Entry
		err := rows.Scan(&e.OrderID, &e.Version, &body)
		e.Sum = SumOf(body)
		*page = append(*page, e)
		return err
	}
}
