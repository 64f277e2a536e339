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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// A text for a person, not a page of some other server.
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return fmt.Errorf("the answer is %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
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
