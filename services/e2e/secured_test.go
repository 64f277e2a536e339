package e2e

import (
	"crypto/tls"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"ordersystem.dev/services/internal/testenv"
)

// Both APIs with a certificate, for clients that have a token of an issuer.
func TestAPIsWithCertificatesAndTokens(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	issuer := testenv.NewIssuer(t)
	key := issuer.Publish(t, "key")
	dir := t.TempDir()
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	authority := testenv.NewAuthority(t, "ca")
	cert, private := authority.Issue(t, "orders")
	settings := append(issuer.Env(),
		"HTTP_TLS_CERT="+file("tls.crt", cert), "HTTP_TLS_KEY="+file("tls.key", private))
	cart, order := newCart(t, kafka.Addr, settings...), newOrder(t, kafka.Addr, settings...)
	cart.start().ready()
	order.start().ready()
	ca := file("ca.crt", authority.PEM)
	for _, p := range []*process{cart, order} {
		p.api = strings.Replace(p.api, "http:", "https:", 1)
	}

	programs, err := build()
	if err != nil {
		t.Fatal(err)
	}
	check := func(claims map[string]any, args ...string) (string, error) {
		token := file("token", []byte(testenv.SignToken(t, key, jose.ES256, claims)+"\n"))
		args = append([]string{"-cart", cart.api, "-order", order.api, "-ca", ca, "-token", token}, args...)
		out, err := exec.CommandContext(t.Context(), filepath.Join(programs, "check"), args...).CombinedOutput()
		return string(out), err
	}
	if out, err := check(nil, "-n", "5", "place", "update", "find", "audit"); err != nil {
		t.Errorf("with a token of all scopes: %v\n%s", err, out)
	}
	tenant := map[string]any{"order_prefix": "shop-1/"}
	if out, err := check(tenant, "-prefix", "shop-1/", "place", "update", "find"); err != nil {
		t.Errorf("a token for the orders of one shop: %v\n%s", err, out)
	}
	reads, writes := map[string]any{"scope": "orders:read"}, map[string]any{"scope": "orders:write"}
	for name, tt := range map[string]struct {
		claims map[string]any
		args   []string
		want   string
	}{
		"another shop's orders":         {tenant, []string{"-prefix", "shop-2/", "place"}, "403 Forbidden"},
		"a look-up at another shop":     {tenant, []string{"-id", "shop-2/x", "find"}, "403 Forbidden"},
		"an audit for one shop":         {tenant, []string{"audit"}, "403 Forbidden"},
		"a creation without scope":      {reads, []string{"place"}, "orders:write"},
		"a look-up without scope":       {writes, []string{"-id", "x", "find"}, "orders:read"},
		"an audit without scope":        {writes, []string{"audit"}, "orders:read"},
		"an expired token":              {map[string]any{"exp": 1}, []string{"place"}, "has expired"},
		"a token for the API of others": {map[string]any{"aud": "mail"}, []string{"place"}, "(aud)"},
	} {
		if out, err := check(tt.claims, append([]string{"-timeout", "5s"}, tt.args...)...); err == nil ||
			!strings.Contains(out, tt.want) {
			t.Errorf("%s: %v, want an error with %q:\n%s", name, err, tt.want, out)
		}
	}

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Roots()}}}
	// Shops do not know each other's Idempotency-Keys.
	for _, shop := range []string{"shop-1/", "shop-2/"} {
		token := testenv.SignToken(t, key, jose.ES256, map[string]any{"order_prefix": shop})
		got, err := sendBy(client, http.MethodPost, cart.api+"/order/create-order",
			`{"orderId": "`+shop+`keyed", "itemsNum": 1}`, "Authorization", "Bearer "+token, "Idempotency-Key", "1")
		if err != nil || got.status != http.StatusOK {
			t.Errorf("the first order of %s with key 1: %d %q, %v; want 200", shop, got.status, got.body, err)
		}
	}
	for url, want := range map[string]int{
		cart.api + "/order/create-order":   http.StatusUnauthorized,
		order.api + "/order/order-details": http.StatusUnauthorized,
		// Probes and metrics have no tokens.
		cart.ops + "/readyz":   http.StatusOK,
		order.ops + "/metrics": http.StatusOK,
		strings.Replace(cart.api, "https:", "http:", 1) + "/order/create-order": http.StatusBadRequest,
	} {
		method := http.MethodGet
		if strings.Contains(url, "create-order") {
			method = http.MethodPost
		}
		got, err := sendBy(client, method, url, "")
		if err != nil || got.status != want {
			t.Errorf("%s without a token: %d %q, %v; want %d", url, got.status, got.body, err, want)
		}
	}
	cart.stop()
	order.stop()
}
