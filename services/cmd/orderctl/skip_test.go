package main

import (
	"strings"
	"testing"
)

// The exit code is 0 only if Order has skipped exactly this batch, or would. The real Order is in the tests of
// services/e2e.
func TestSkipSaysWhatOrderHasDone(t *testing.T) {
	t.Parallel()
	const place, asked = "orders/3/17", "POST /skip?at=orders%2F3%2F17"
	const skipped = `{"at":"orders/3/17","outcome":"skipped","records":2,"bytes":91}` + "\n"
	const already = `{"at":"orders/3/17","outcome":"skipped already"}` + "\n"
	for name, tt := range map[string]struct {
		args          string
		status        int
		response      string
		code          int
		asked, stdout string
		stderr        string
	}{
		"not confirmed": {
			place, 200, strings.Replace(skipped, "skipped", "would be skipped", 1), 0, asked,
			"orders/3/17: would be skipped, 2 records and 91 bytes\n" +
				"Nothing was skipped. The same command with -confirm has Order do so.\n", "",
		},
		"skipped": {
			"-confirm " + place, 200, skipped, 0, asked + "&confirm=true",
			"orders/3/17: skipped, 2 records and 91 bytes\n", "",
		},
		"again": {
			"-confirm " + place, 200, already, 0, asked + "&confirm=true", "orders/3/17: skipped already\n", "",
		},
		"JSON": {"-json -confirm " + place, 200, skipped, 0, asked + "&confirm=true", skipped, ""},
		"not there": {
			"-confirm " + place, 409, "nothing is skipped: Order is elsewhere\n", 1, asked + "&confirm=true", "",
			"have Order skip orders/3/17: the answer is 409 Conflict: nothing is skipped: Order is elsewhere (-order",
		},
		"not passed": {"-confirm " + place, 503, "within 30s\n", 1, asked + "&confirm=true", "", "503 Service Unav"},
		"another":    {place, 200, `{"at":"orders/3/1","outcome":"skipped"}`, 1, asked, "", "is none of Order's"},
		"not Order":  {place, 200, "ok", 1, asked, "", "the answer is none of Order's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, asked, stdout, stderr := commands(t, "skip", tt.status, tt.response, strings.Fields(tt.args)...)
			if code != tt.code || asked != tt.asked || stdout != tt.stdout || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit code %d, Order was asked %q, printed:\n%s%s\nwant %d, %q, %q, %q",
					code, asked, stdout, stderr, tt.code, tt.asked, tt.stdout, tt.stderr)
			}
		})
	}
}
