package rabbit

import "github.com/prometheus/client_golang/prometheus"

var (
	connects = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "compute_agent_rabbit_connects_total",
		Help: "Attempts to connect to a broker, by purpose (publish, consume) and outcome (ok, error).",
	}, []string{"purpose", "outcome"})
	connected = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "compute_agent_rabbit_connected",
		Help: "Connections that are up, by purpose.",
	}, []string{"purpose"})
	blockedConnections = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "compute_agent_rabbit_blocked_connections",
		Help: "Connections that the broker has blocked because it lacks memory or disk.",
	})
	publishRetries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "compute_agent_rabbit_publish_retries_total",
		Help: "Publishes that had to be tried again.",
	})
)

// Collectors are the measurements of this package, for the agent's registry. They
// are shared by all transports of the process.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{connects, connected, blockedConnections, publishRetries}
}
