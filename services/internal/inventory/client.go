package inventory

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"ordersystem.dev/services/internal/web"
)

// errCut is an inventory without its last line.
var errCut = errors.New("the connection ended before the inventory was whole")

// Read reads the inventory of a service, whose operations endpoints are at addr, and calls entry for each
// order: for these, or for all if there are no IDs. After an error the inventory is not whole.
func Read(ctx context.Context, addr string, ids []string, entry func(Entry)) error {
	target := strings.TrimSuffix(addr, "/") + Path
	if len(ids) > 0 {
		target += "?" + url.Values{"orderId": ids}.Encode()
	}
	resp, err := web.Ask(ctx, http.MethodGet, target)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var orders int64
	for decoder := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10)); ; {
		var l line
		err := decoder.Decode(&l)
		switch {
		case errors.Is(err, io.EOF):
			return errCut
		case err != nil:
			return fmt.Errorf("%w: %w", errCut, err)
		case l.Error != "":
			return errors.New(l.Error)
		case l.Orders != nil && *l.Orders != orders:
			return fmt.Errorf("%d orders came, and the service has sent %d", orders, *l.Orders)
		case l.Orders != nil:
			return nil
		case l.Entry == nil || l.OrderID == "" || l.Version < 1:
			return fmt.Errorf("a line is no entry of an inventory: is %s the operations port of Cart or Order?", addr)
		}
		orders++
		entry(*l.Entry)
	}
}
