package metrics_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/internal/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHandlerServesOwnAndRegistered(t *testing.T) {
	t.Parallel()
	r := metrics.NewRegistry("1.2.3")
	builds := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: metrics.Namespace, Name: "builds_total"}, []string{"outcome"})
	r.MustRegister(builds)
	builds.WithLabelValues("success").Inc()

	rec := httptest.NewRecorder()
	metrics.Handler(r, nil).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, rec.Code)
	body := rec.Body.String()
	require.Contains(t, body, `compute_agent_build_info{version="1.2.3"} 1`)
	require.Contains(t, body, `compute_agent_builds_total{outcome="success"} 1`)
	require.Contains(t, body, "process_resident_memory_bytes")
	require.Contains(t, body, "go_goroutines")
}

func TestHandlerReportsFailure(t *testing.T) {
	t.Parallel()
	r := metrics.NewRegistry("x")
	r.MustRegister(failing{})
	rec := httptest.NewRecorder()
	metrics.Handler(r, nil).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusInternalServerError, rec.Code)
}

type failing struct{}

func (failing) Describe(ch chan<- *prometheus.Desc) { ch <- failingDesc }
func (failing) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(failingDesc, errors.New("no number"))
}

var failingDesc = prometheus.NewDesc("compute_agent_failing", "", nil, nil)

func TestHandlerServesInstancesApart(t *testing.T) {
	t.Parallel()
	r := metrics.NewRegistry("x")
	get := func(h http.Handler, path string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return rec.Code, rec.Body.String()
	}
	instances := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: metrics.Namespace, Name: "instance_up", ConstLabels: prometheus.Labels{"uuid": "u"}}, func() float64 { return 1 })
	h := metrics.Handler(r, instances)
	status, body := get(h, "/metrics/instances")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, `compute_agent_instance_up{uuid="u"} 1`)
	require.NotContains(t, body, "go_goroutines")
	status, body = get(h, "/metrics")
	require.Equal(t, http.StatusOK, status)
	require.NotContains(t, body, "instance_up")

	status, _ = get(metrics.Handler(metrics.NewRegistry("x"), nil), "/metrics/instances")
	require.Equal(t, http.StatusNotFound, status)
}

func TestServeUntilContextEnds(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1) // one answer
	go func() { ended <- metrics.Serve(ctx, l, metrics.Handler(metrics.NewRegistry("x"), nil)) }()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/metrics", nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)

	cancel()
	require.NoError(t, <-ended)
	_, err = client.Do(req) //nolint:bodyclose // it fails
	require.Error(t, err)
}

func TestServeReportsBrokenListener(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.ErrorIs(t, metrics.Serve(t.Context(), l, http.NotFoundHandler()), net.ErrClosed)
}
