package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// commands runs a command of orderctl without a Kafka, against an Order that responds with these lines. It returns
// what Order was asked for.
func commands(
	t *testing.T, command string, status int, lines string, args ...string,
) (code int, asked, stdout, stderr string) {
	t.Helper()
	order := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.String()
		w.WriteHeader(status)
		_, _ = io.WriteString(w, lines)
	}))
	defer order.Close()
	var out, errs bytes.Buffer
	args = append([]string{command, "-order", order.URL + "/"}, args...)
	code = run(t.Context(), args, func(string) string { return "" }, &out, &errs)
	return code, asked, out.String(), errs.String()
}

const (
	rebuildSame = `{"progress":{"read":0,"of":7}}` + "\n" +
		`{"result":{"orders":3,"unusable":1,"differing":{},"examples":[],"swapped":false}}` + "\n"
	rebuildDiffers = `{"result":{"orders":3,"unusable":0,"differing":{"different":1,"only-in-view":30},` +
		`"examples":[{"orderId":"A","view":2,"topics":2,"difference":"different"},` +
		`{"orderId":"B","view":1,"topics":0,"difference":"only-in-view"}],"swapped":false}}` + "\n"
)

// The exit code is 0 only if the view is what the topics have.
func TestRebuildSaysWhatOrderHasDone(t *testing.T) {
	t.Parallel()
	swapped := strings.Replace(rebuildDiffers, `"swapped":false`, `"swapped":true`, 1)
	refused := strings.Replace(rebuildDiffers, `"swapped":false`, `"swapped":false,"refused":"only the view has 30"`, 1)
	const table = `ORDER ID  VIEW  TOPICS  DIFFERENCE
"A"       2     2       different
"B"       1     0       only-in-view
all: 1 different, 30 only-in-view`
	for name, tt := range map[string]struct {
		args          string
		status        int
		lines         string
		code          int
		asked, stdout string
		stderr        string
	}{
		"the same": {
			"", 200, rebuildSame, 0, "POST /rebuild", "no differences\n",
			"3 orders compared, 0 differ; 1 records of the topics take no effect",
		},
		"differences": {
			"", 200, rebuildDiffers, 1, "POST /rebuild", table + "\n", "31 orders differ: the same command with -swap",
		},
		"swapped": {
			"-swap -drop", 200, swapped, 0, "POST /rebuild?drop=true&swap=true",
			table + ". The view now has what the topics have\n", "31 differ",
		},
		"refused": {"-swap", 200, refused, 1, "POST /rebuild?swap=true", table + "\n", "only the view has 30"},
		"JSON": {
			"-json", 200, rebuildSame, 0, "POST /rebuild",
			`{"orders":3,"unusable":1,"differing":{},"examples":[],"swapped":false}` + "\n", "",
		},
		"failed":    {"", 200, `{"error":"no room"}` + "\n", 1, "POST /rebuild", "", "its view: no room (-order"},
		"busy":      {"", 409, "it is being rebuilt\n", 1, "POST /rebuild", "", "409 Conflict: it is being rebuilt"},
		"cut off":   {"", 200, rebuildSame[:50], 1, "POST /rebuild", "", "the connection ended before Order was done"},
		"no result": {"", 200, rebuildSame[:31], 1, "POST /rebuild", "", "the connection ended before Order was done"},
		"not Order": {"", 200, `{"status":"ok"}`, 1, "POST /rebuild", "", "a line is none of Order's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, asked, stdout, stderr := commands(t, "rebuild", tt.status, tt.lines, strings.Fields(tt.args)...)
			if code != tt.code || asked != tt.asked || stdout != tt.stdout || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit code %d, Order was asked %q, printed:\n%s%s\nwant %d, %q, %q, %q",
					code, asked, stdout, stderr, tt.code, tt.asked, tt.stdout, tt.stderr)
			}
		})
	}
}
