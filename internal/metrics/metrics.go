// Package metrics holds the registry of the agent's own measurements and serves
// it to Prometheus. Components register their collectors on the registry that they
// are given; names are compute_agent_<noun>_<unit>, labels are bounded. Measurements of
// instances, whose labels are not, are served apart.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Namespace is the first part of every name of ours.
const Namespace = "compute_agent"

const (
	readHeaderTimeout = 10 * time.Second // a scraper sends its request at once
	writeTimeout      = 30 * time.Second // a scrape's usual limit is 10 s
	shutdownTimeout   = 5 * time.Second
	maxScrapes        = 4 // at a time; more answer 503
)

// NewRegistry returns a registry with what describes the process: its resources, the
// Go runtime and compute_agent_build_info{version}.
func NewRegistry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace:   Namespace,
			Name:        "build_info",
			Help:        "Version of the running agent; the value is always 1.",
			ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }),
	)
	return r
}

// Handler returns what serves the registry under /metrics, and the measurements of instances under
// /metrics/instances; nil: there are none. A collector that fails
// makes the scrape fail, so that missing numbers are noticed.
func Handler(r *prometheus.Registry, instances prometheus.Collector) http.Handler {
	mux := http.NewServeMux()
	if instances != nil {
		own := prometheus.NewRegistry()
		own.MustRegister(instances)
		mux.Handle("GET /metrics/instances", promhttp.HandlerFor(own, promhttp.HandlerOpts{
			ErrorHandling:       promhttp.HTTPErrorOnError,
			MaxRequestsInFlight: maxScrapes,
			Timeout:             writeTimeout,
		}))
	}
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(r, promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.HTTPErrorOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             writeTimeout,
	})))
	return mux
}

// Serve answers requests on a listener until ctx ends, lets those under way finish
// for a few seconds, and closes the listener. It returns nil if ctx was the reason.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 14,
	}
	ended := make(chan error, 1) // one answer
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	graceCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := srv.Shutdown(graceCtx)
	if err != nil {
		err = errors.Join(err, srv.Close())
	}
	if end := <-ended; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	if err != nil {
		return fmt.Errorf("stop serving metrics: %w", err)
	}
	return nil
}
