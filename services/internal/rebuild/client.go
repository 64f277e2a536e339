package rebuild

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"ordersystem.dev/services/internal/web"
)

// errCut is a response without its last line.
var errCut = errors.New("the connection ended before Order was done: repeat the command, which is harmless")

// Run sends the command to Order, whose operations endpoints are at addr, and returns the result. It calls
// progress for each report on the way. After an error the view may be swapped or not.
func Run(ctx context.Context, addr string, o Options, progress func(Progress)) (*Result, error) {
	target := strings.TrimSuffix(addr, "/") + Path
	if query := o.query(); query != "" {
		target += "?" + query
	}
	resp, err := web.Ask(ctx, http.MethodPost, target)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var result *Result
	for decoder := json.NewDecoder(resp.Body); ; {
		var l Line
		err := decoder.Decode(&l)
		switch {
		case err != nil && result != nil:
			// The response has ended, so Order takes the next command.
			return result, nil
		case err != nil:
			return nil, fmt.Errorf("%w (%w)", errCut, err)
		case l.Error != "":
			return nil, errors.New(l.Error)
		case l.Result != nil:
			result = l.Result
		case l.Progress != nil:
			progress(*l.Progress)
		default:
			return nil, fmt.Errorf("a line is none of Order's: is %s its operations port?", addr)
		}
	}
}
