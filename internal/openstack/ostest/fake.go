package ostest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// FakePassword is the only password that a Fake accepts.
const FakePassword = "the-secret"

// Fake is a control plane within the test: Keystone at /v3, which grants the
// tokens "service-1", "service-2", … and each service at /<type>.
type Fake struct {
	Pool *openstack.Pool
	URL  string

	mu       sync.Mutex // guards the fields below
	granted  int
	lifetime time.Duration
	down     bool
	bodies   []map[string]any
}

// NewFake starts a control plane with services by type.
func NewFake(tb testing.TB, services map[string]http.Handler) *Fake {
	tb.Helper()
	f := &Fake{Pool: &openstack.Pool{UserAgent: "compute-agent-test"}, lifetime: time.Hour}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	f.URL = server.URL
	tb.Cleanup(func() {
		f.Pool.CloseIdle()
		server.Close()
	})
	catalog := []any{}
	for serviceType, handler := range services {
		mux.Handle("/"+serviceType+"/", http.StripPrefix("/"+serviceType, handler))
		catalog = append(catalog, map[string]any{"type": serviceType, "name": serviceType, "endpoints": []any{
			map[string]any{"interface": "internal", "region": "RegionOne", "region_id": "RegionOne", "url": server.URL + "/" + serviceType},
		}})
	}
	mux.HandleFunc("POST /v3/auth/tokens", func(w http.ResponseWriter, r *http.Request) { f.grant(w, r, catalog) })
	return f
}

func (f *Fake) grant(w http.ResponseWriter, r *http.Request, catalog []any) {
	raw, _ := io.ReadAll(r.Body)
	var body map[string]any
	_ = json.Unmarshal(raw, &body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bodies = append(f.bodies, body)
	w.Header().Set("Content-Type", "application/json")
	switch {
	case f.down:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case strings.Contains(string(raw), `"password"`) && !strings.Contains(string(raw), FakePassword):
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":{"code":401,"message":"The request you have made requires authentication.","title":"Unauthorized"}}`)
		return
	}
	f.granted++
	w.Header().Set("X-Subject-Token", fmt.Sprintf("service-%d", f.granted))
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": map[string]any{
		"expires_at": time.Now().Add(f.lifetime).UTC().Format("2006-01-02T15:04:05.000000Z"),
		"project":    map[string]any{"id": "service-project"}, "user": map[string]any{"id": "service-user"}, "catalog": catalog,
	}})
}

// Granted returns how many tokens were granted.
func (f *Fake) Granted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.granted
}

// LastAuth returns the body of the last authentication.
func (f *Fake) LastAuth() map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bodies[len(f.bodies)-1]
}

// SetLifetime changes how long further tokens are valid.
func (f *Fake) SetLifetime(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lifetime = d
}

// SetDown makes Keystone answer 503.
func (f *Fake) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Auth returns the options of a user of the fake Keystone.
func (f *Fake) Auth(section, user string) openstack.AuthOptions {
	return openstack.AuthOptions{
		Section: section, Type: "password", URL: f.URL, Username: user, Password: reqctx.Secret(FakePassword),
		UserDomainName: "Default", ProjectName: "service", ProjectDomainName: "Default",
	}
}

// Service returns a service of the fake control plane.
func (f *Fake) Service(section, serviceType, version string) *openstack.Service {
	return f.Pool.Service(openstack.ServiceOptions{
		Section: section, Session: f.Pool.Session(f.Auth(section, section)), Types: []string{serviceType}, Version: version,
	})
}
