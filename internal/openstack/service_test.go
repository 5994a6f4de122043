package openstack_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// recorder keeps the last request that it answered.
type recorder struct {
	last   atomic.Pointer[http.Request]
	body   atomic.Pointer[string]
	status int
	answer string
}

func (h *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	text := string(body)
	h.last.Store(r)
	h.body.Store(&text)
	if h.status != 0 {
		w.Header().Set("X-Openstack-Request-Id", "req-theirs")
		w.WriteHeader(h.status)
	}
	_, _ = io.WriteString(w, h.answer)
}

func userContext(tb testing.TB, catalog string) context.Context {
	tb.Helper()
	r := reqctx.Admin()
	r.RequestID, r.AuthToken, r.ServiceCatalog = "req-ours", "user-token", json.RawMessage(catalog)
	return reqctx.With(tb.Context(), r)
}

func TestWhoseTokenIsSent(t *testing.T) {
	t.Parallel()
	h := &recorder{answer: `{"answer": 42}`}
	fake := ostest.NewFake(t, map[string]http.Handler{"network": h})
	service := fake.Pool.Service(openstack.ServiceOptions{
		Section: "neutron", Session: fake.Pool.Session(fake.Auth("neutron", "neutron")),
		ServiceUser: fake.Pool.Session(fake.Auth("service_user", "nova")), Types: []string{"network"}, Version: "v2.0",
	})
	ctx := userContext(t, "[]")
	for _, tt := range []struct {
		name            string
		ctx             context.Context
		user            bool
		token, svcToken string
	}{
		{"the agent's own", ctx, false, "service-1", ""},
		{"the user's", ctx, true, "user-token", "service-2"},
		{"of a request without token", t.Context(), true, "service-1", ""},
	} {
		var answer struct{ Answer int }
		require.NoError(t, service.Do(tt.ctx, openstack.Request{
			Method: http.MethodPut, Path: "/things", Query: url.Values{"a": {"b c"}}, Header: map[string]string{"X-More": "yes"},
			Body: map[string]int{"n": 1}, Into: &answer, User: tt.user,
		}), tt.name)
		require.Equal(t, 42, answer.Answer)
		r := h.last.Load()
		require.Equal(t, tt.token, r.Header.Get("X-Auth-Token"), tt.name)
		require.Equal(t, tt.svcToken, r.Header.Get("X-Service-Token"), tt.name)
		require.Equal(t, "/v2.0/things?a=b+c", r.URL.RequestURI())
		require.Equal(t, "application/json", r.Header.Get("Content-Type"))
		require.Equal(t, "yes", r.Header.Get("X-More"))
		require.JSONEq(t, `{"n": 1}`, *h.body.Load())
		require.Contains(t, r.Header.Get("User-Agent"), "compute-agent-test")
	}
	require.NoError(t, service.Do(ctx, get))
	require.Equal(t, "req-ours", h.last.Load().Header.Get("X-OpenStack-Request-ID"))
}

func TestCatalogOfTheRequest(t *testing.T) {
	t.Parallel()
	h := &recorder{}
	fake := ostest.NewFake(t, map[string]http.Handler{"image": h, "network": h})
	service := fake.Pool.Service(openstack.ServiceOptions{Section: "glance", Types: []string{"image"}, Version: "v2"})
	request := openstack.Request{Method: http.MethodGet, Path: "/images", User: true}

	ctx := userContext(t, `[{"type":"image","name":"glance","endpoints":[{"region":"RegionOne","publicURL":"`+fake.URL+`/network/v1"}]}]`)
	require.NoError(t, service.Do(ctx, request))
	require.Equal(t, "/v2/images", h.last.Load().URL.Path)

	err := service.Do(userContext(t, "[]"), request)
	require.ErrorIs(t, err, openstack.ErrNoEndpoint)
	require.ErrorContains(t, err, "[glance] service_type image: no endpoint in the catalog")
	err = service.Do(t.Context(), request)
	require.ErrorIs(t, err, openstack.ErrNoIdentity)
	require.ErrorContains(t, err, "[glance] auth_type")

	// With a service user his catalog serves contexts that have none.
	service = fake.Pool.Service(openstack.ServiceOptions{
		Section: "glance", Types: []string{"image"}, Version: "v2", ServiceUser: fake.Pool.Session(fake.Auth("service_user", "nova")),
	})
	require.NoError(t, service.Do(userContext(t, "[]"), request))
	require.Equal(t, "user-token", h.last.Load().Header.Get("X-Auth-Token"))
}

func TestRefusedTokenIsRenewedOnce(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	fake := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.Header.Get("X-Auth-Token") == "service-1" || r.URL.Path == "/never" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})})
	service := fake.Service("neutron", "network", "")
	require.NoError(t, service.Do(t.Context(), get))
	require.Equal(t, int32(2), calls.Load())
	require.Equal(t, 2, fake.Granted())

	err := service.Do(t.Context(), openstack.Request{Method: http.MethodGet, Path: "/never"})
	require.Equal(t, http.StatusUnauthorized, openstack.Status(err))
	require.Equal(t, int32(4), calls.Load())

	err = service.Do(userContext(t, ""), openstack.Request{Method: http.MethodGet, Path: "/never", User: true})
	require.Equal(t, http.StatusUnauthorized, openstack.Status(err), "a user's token cannot be renewed")
	require.Equal(t, int32(5), calls.Load())

	// A service token that goes with the user's can.
	service = fake.Pool.Service(openstack.ServiceOptions{
		Section: "neutron", ServiceUser: fake.Pool.Session(fake.Auth("service_user", "nova")), Types: []string{"network"},
	})
	granted := fake.Granted()
	err = service.Do(userContext(t, ""), openstack.Request{Method: http.MethodGet, Path: "/never", User: true})
	require.Equal(t, http.StatusUnauthorized, openstack.Status(err))
	require.Equal(t, int32(7), calls.Load())
	require.Equal(t, granted+2, fake.Granted())
}

func TestHTTPErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, answer, kind, text string
		status                   int
	}{
		{"neutron", `{"NeutronError": {"type": "PortNotFound", "message": "Port p could not be found.", "detail": ""}}`, "PortNotFound", "neutron: GET /things: 404 Not Found: PortNotFound: Port p could not be found. (req-theirs)", 404},
		{"placement", `{"errors": [{"status": 409, "title": "Conflict", "detail": "There was\n\n a conflict  ", "code": "placement.concurrent_update"}]}`, "placement.concurrent_update", "409 Conflict: placement.concurrent_update: There was a conflict (req-theirs)", 409},
		{"keystone", `{"error": {"code": 403, "title": "Forbidden", "message": "You are not authorized"}}`, "", "403 Forbidden: You are not authorized (", 403},
		{"cinder", `{"itemNotFound": {"code": 404, "message": "Volume v could not be found."}}`, "itemNotFound", "404 Not Found: itemNotFound: Volume v could not be found.", 404},
		{"text", "404 Not Found\n\nNo image found\n\n   ", "", "404 Not Found: 404 Not Found No image found (", 404},
		{"page", "<html><head><title>x</title></head><body><h1>Bad &amp; gone</h1></body></html>", "", "502 Bad Gateway: Bad & gone (", 502},
		{"nothing", "", "", "neutron: GET /things: 500 Internal Server Error (req-theirs)", 500},
		{"list", `[1]`, "", "500 Internal Server Error: [1]", 500},
		{"fault as text", `{"message": "sorry"}`, "", "500 Internal Server Error: sorry", 500},
		{"long", strings.Repeat("ä", 1000), "", strings.Repeat("ä", 500) + "…", 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fake := ostest.NewFake(t, map[string]http.Handler{"network": &recorder{status: tt.status, answer: tt.answer}})
			err := fake.Service("neutron", "network", "").Do(t.Context(), get)
			require.Equal(t, tt.status, openstack.Status(err))
			require.Equal(t, tt.kind, openstack.Kind(err))
			require.ErrorContains(t, err, tt.text)
			require.NotContains(t, err.Error(), "service-1")
		})
	}
}

func TestUnreachableServices(t *testing.T) {
	t.Parallel()
	silent := make(chan struct{})
	fake := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	})})
	defer close(silent)
	session := fake.Pool.Session(fake.Auth("neutron", "neutron"))
	_, err := session.Token(t.Context()) // which the time-out is for as well
	require.NoError(t, err)
	options := openstack.ServiceOptions{Section: "neutron", Session: session, Types: []string{"network"}, Timeout: 500 * time.Millisecond}
	err = fake.Pool.Service(options).Do(t.Context(), get)
	require.ErrorIs(t, err, openstack.ErrUnreachable)
	require.ErrorContains(t, err, "[neutron] endpoint "+fake.URL+"/network of the catalog (valid_interfaces, region_name, endpoint_override): no answer within the timeout")

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = fake.Pool.Service(options).Do(ctx, get)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, openstack.ErrUnreachable, "the caller gave up, the service may be well")

	options.EndpointOverride = "http://" + closedAddress(t)
	options.ConnectRetries, options.ConnectRetryDelay, options.Timeout = 2, 10*time.Millisecond, time.Minute
	started := time.Now()
	err = fake.Pool.Service(options).Do(t.Context(), openstack.Request{Method: http.MethodPost, Path: "/things"})
	require.ErrorIs(t, err, openstack.ErrUnreachable)
	require.ErrorContains(t, err, "[neutron] endpoint_override "+options.EndpointOverride+": dial tcp")
	require.GreaterOrEqual(t, time.Since(started), 30*time.Millisecond, "two retries after 10 and 20 ms")
}

// TestBrokenConnections: a read that got no answer is made again, a change is not.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	fake := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 || r.Method == http.MethodPost {
			panic(http.ErrAbortHandler)
		}
	})})
	service := fake.Pool.Service(openstack.ServiceOptions{
		Section: "neutron", Session: fake.Pool.Session(fake.Auth("neutron", "neutron")), Types: []string{"network"},
		ConnectRetries: 3, ConnectRetryDelay: time.Millisecond,
	})
	require.NoError(t, service.Do(t.Context(), get))
	require.Equal(t, int32(2), calls.Load())
	err := service.Do(t.Context(), openstack.Request{Method: http.MethodPost, Path: "/things"})
	require.ErrorIs(t, err, openstack.ErrUnreachable)
	require.Equal(t, int32(3), calls.Load())

	calls.Store(0)
	err = service.Do(t.Context(), openstack.Request{Method: http.MethodGet, Path: "/things", Changes: true})
	require.ErrorIs(t, err, openstack.ErrUnreachable)
	require.Equal(t, int32(1), calls.Load(), "a GET that makes something")
}

func TestRetriableStatus(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	fake := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})})
	options := openstack.ServiceOptions{
		Section: "neutron", Session: fake.Pool.Session(fake.Auth("neutron", "neutron")), Types: []string{"network"},
		StatusCodeRetries: 1, ConnectRetryDelay: time.Millisecond,
	}
	require.Equal(t, http.StatusServiceUnavailable, openstack.Status(fake.Pool.Service(options).Do(t.Context(), get)))
	require.Equal(t, int32(2), calls.Load())
	require.NoError(t, fake.Pool.Service(options).Do(t.Context(), get))
}

func TestStream(t *testing.T) {
	t.Parallel()
	stall := make(chan struct{})
	fake := ostest.NewFake(t, map[string]http.Handler{"image": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/up":
			got, _ := io.ReadAll(r.Body)
			_, _ = w.Write(got)
		case "/slow":
			for range 5 { // longer in all than the timeout
				_, _ = io.WriteString(w, "x")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(500 * time.Millisecond)
			}
		default:
			_, _ = io.WriteString(w, "begin")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-stall:
			case <-r.Context().Done():
			}
		}
	})})
	defer close(stall)
	service := fake.Pool.Service(openstack.ServiceOptions{
		Section: "glance", Session: fake.Pool.Session(fake.Auth("glance", "glance")), Types: []string{"image"}, Timeout: 2 * time.Second,
	})
	read := func(method, path string, body io.Reader) (string, error) {
		resp, err := service.Stream(t.Context(), openstack.Request{Method: method, Path: path, RawBody: body})
		require.NoError(t, err)
		got, err := io.ReadAll(resp.Body)
		require.NoError(t, resp.Body.Close())
		return string(got), err
	}
	got, err := read(http.MethodGet, "/slow", nil)
	require.NoError(t, err)
	require.Equal(t, "xxxxx", got)
	got, err = read(http.MethodPut, "/up", strings.NewReader("data"))
	require.NoError(t, err)
	require.Equal(t, "data", got)
	got, err = read(http.MethodGet, "/stalls", nil)
	require.ErrorContains(t, err, "no answer within the timeout")
	require.Equal(t, "begin", got)
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	thief := &recorder{}
	elsewhere := httptest.NewServer(thief)
	defer elsewhere.Close()
	fake := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
		case "/things":
			http.Redirect(w, r, "/network/here", http.StatusFound)
		}
	})})
	service := fake.Service("neutron", "network", "")
	require.NoError(t, service.Do(t.Context(), get))
	err := service.Do(t.Context(), openstack.Request{Method: http.MethodGet, Path: "/away"})
	require.Equal(t, http.StatusFound, openstack.Status(err))
	require.Nil(t, thief.last.Load(), "the token stays")
}

func TestTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(&recorder{})
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	fake := ostest.NewFake(t, nil)
	for _, tt := range []struct {
		name string
		tls  openstack.TLSOptions
		want string // "": success
	}{
		{"unknown authority", openstack.TLSOptions{}, "certificate signed by unknown authority"},
		{"cafile", openstack.TLSOptions{CAFile: ca}, ""},
		{"insecure", openstack.TLSOptions{Insecure: true}, ""},
		{"empty cafile", openstack.TLSOptions{CAFile: empty}, "[neutron] cafile " + empty + ": no certificate in the file"},
		{"no certfile", openstack.TLSOptions{CAFile: ca, CertFile: "/none"}, "[neutron] certfile /none: load with key /none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := fake.Pool.Service(openstack.ServiceOptions{
				Section: "neutron", Session: fake.Pool.Session(fake.Auth("neutron", "neutron")), EndpointOverride: server.URL, TLS: tt.tls,
			}).Do(t.Context(), get)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, openstack.ErrUnreachable)
			require.ErrorContains(t, err, tt.want)
		})
	}
}
