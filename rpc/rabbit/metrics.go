package rabbit

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	connects = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "compute_agent_rabbit_connects_total",
		Help: "Attempts to connect to a broker, by purpose (publish, consume) and outcome (ok, error).",
	}, []string{"purpose", "outcome"})
	connected = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "compute_agent_rabbit_connected",
		Help: "Connections that are up, by purpose.",
	}, []string{"purpose"})
	blockedConnections = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "compute_agent_rabbit_blocked_connections",
		Help: "Connections that the broker has blocked because it lacks memory or disk.",
	})
	publishRetries = promauto.NewCounter(prometheus.CounterOpts{
		Name: "compute_agent_rabbit_publish_retries_total",
		Help: "Publishes that had to be tried again.",
	})
)
