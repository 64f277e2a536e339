package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Ask sends a request without a body to the operations endpoints of a service. A response that is not 200 is an
// error with its text. The caller closes the body of any other one.
func Ask(ctx context.Context, method, target string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	// A text for a person, not a page of some other server.
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
	return nil, fmt.Errorf("the answer is %s: %s", resp.Status, strings.TrimSpace(string(text)))
}
