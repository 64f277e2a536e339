package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMetricSumsItsSeries(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`# HELP rows x
# TYPE rows gauge
rows 41
rows_total 7
by_code{code="a b"} 1
by_code{code="c"} 2.5
`))
	}))
	t.Cleanup(server.Close)
	s := &service{name: "it", ops: server.URL}
	got := map[string]float64{}
	for _, name := range []string{"rows", "rows_total", "by_code"} {
		value, err := s.metric(t.Context(), name)
		if err != nil {
			t.Error(err)
		}
		got[name] = value
	}
	if diff := cmp.Diff(map[string]float64{"rows": 41, "rows_total": 7, "by_code": 3.5}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := s.metric(t.Context(), "row"); err == nil {
		t.Error("a metric that does not exist has a value")
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"measure", `no command "measure"`},
		{"-only accept,speed", `no subject "speed"`},
		{"-repeats many", "invalid value"},
	} {
		if err := run(t.Context(), strings.Fields(tt.args)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("bench %s: error %v, want %q in it", tt.args, err, tt.want)
		}
	}
}
