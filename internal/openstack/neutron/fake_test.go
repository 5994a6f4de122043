package neutron

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The ids of the recorded answers in testdata (Neutron 21, linuxbridge).
const (
	netID     = "4ab93dae-e490-4db0-aa3f-de588958b0a5"
	projectID = "42569041dd9442508ba2dfda9c351d5c"
)

// fakeNeutron answers with recorded bodies and keeps what was asked. A test
// replaces single answers by "METHOD /path-prefix".
type fakeNeutron struct {
	tb testing.TB

	mu      sync.Mutex // guards the fields below
	answers map[string]func(r *http.Request) (int, string)
	calls   []string
	bodies  []string // of POST and PUT, without the envelope
	created int
}

// newFake returns a client of a fake Neutron.
func newFake(tb testing.TB) (*Client, *fakeNeutron) {
	tb.Helper()
	f := &fakeNeutron{tb: tb, answers: map[string]func(*http.Request) (int, string){}}
	f.file("GET /extensions", 200, "extensions")
	f.file("GET /networks", 200, "networks-user")
	f.file("GET /subnets", 200, "subnets")
	f.file("GET /security-groups", 200, "security-groups")
	f.file("GET /ports?device_owner", 200, "dhcp-ports")
	f.text("GET /ports", 200, `{"ports": []}`)
	f.file("GET /networks?fields=id&fields=segments", 200, "networks-provider")
	f.file("GET /networks?fields=id&fields=name", 200, "networks-info")
	f.file("GET /floatingips", 404, "floatingips-404")
	f.answers["POST /ports"] = f.create
	f.answers["PUT /ports/"] = f.update
	f.text("DELETE /ports/", 204, "")
	cloud := ostest.NewFake(tb, map[string]http.Handler{"network": http.StripPrefix("/v2.0", f)})
	return New(Options{Service: cloud.Service("neutron", "network", "v2.0")}), f
}

func (f *fakeNeutron) file(what string, status int, name string) {
	body := recorded(f.tb, name)
	f.text(what, status, body)
}

func (f *fakeNeutron) text(what string, status int, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[what] = func(*http.Request) (int, string) { return status, body }
}

func recorded(tb testing.TB, name string) string {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "zed", name+".json"))
	require.NoError(tb, err)
	return string(raw)
}

func (f *fakeNeutron) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	who := "user"
	if strings.HasPrefix(r.Header.Get("X-Auth-Token"), "service-") {
		who = "admin"
	}
	uri, err := url.QueryUnescape(r.URL.RequestURI())
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	call := r.Method + " " + uri
	f.calls = append(f.calls, who+" "+call)
	longest := ""
	for prefix := range f.answers {
		if strings.HasPrefix(call, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	if longest == "" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	status, body := f.answers[longest](r)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// port returns the recorded port with other values.
func port(tb testing.TB, name string, changes map[string]any) string {
	tb.Helper()
	var body map[string]map[string]any
	require.NoError(tb, json.Unmarshal([]byte(recorded(tb, name)), &body))
	maps.Copy(body["port"], changes)
	raw, err := json.Marshal(body)
	require.NoError(tb, err)
	return string(raw)
}

func (f *fakeNeutron) body(r *http.Request) map[string]any {
	raw, _ := io.ReadAll(r.Body)
	var body struct{ Port map[string]any }
	_ = json.Unmarshal(raw, &body)
	text, _ := json.Marshal(body.Port)
	f.bodies = append(f.bodies, string(text))
	return body.Port
}

func (f *fakeNeutron) create(r *http.Request) (int, string) {
	f.created++
	sent := f.body(r)
	sent["id"] = fmt.Sprintf("port-%d", f.created)
	name := "port-created"
	if sent["binding:host_id"] != nil {
		name = "port-bound"
	}
	return http.StatusCreated, port(f.tb, name, sent)
}

func (f *fakeNeutron) update(r *http.Request) (int, string) {
	sent := f.body(r)
	sent["id"] = strings.TrimPrefix(r.URL.Path, "/ports/")
	return http.StatusOK, port(f.tb, "port-bound", sent)
}

// asked returns the calls so far, sorted when they come from several goroutines.
func (f *fakeNeutron) asked(sorted bool) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := slices.Clone(f.calls)
	if sorted {
		slices.Sort(calls)
	}
	f.calls = nil
	return calls
}

// sent returns the bodies so far.
func (f *fakeNeutron) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	bodies := f.bodies
	f.bodies = nil
	return bodies
}

// tenant is the context of a user's request.
func tenant(tb testing.TB, roles ...string) context.Context {
	tb.Helper()
	r := reqctx.Admin()
	r.IsAdmin, r.AuthToken, r.ProjectID, r.Roles = false, "user-token", projectID, roles
	return reqctx.With(tb.Context(), r)
}
