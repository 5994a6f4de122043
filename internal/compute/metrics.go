package compute

import "github.com/prometheus/client_golang/prometheus"

var taskSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Name:    "compute_agent_periodic_task_seconds",
	Help:    "Duration of the periodic tasks' runs, by task and outcome (ok or error).",
	Buckets: []float64{0.01, 0.1, 1, 10, 60},
}, []string{"task", "outcome"})

// Collectors are the measurements of this package, for the agent's registry.
func Collectors() []prometheus.Collector { return []prometheus.Collector{taskSeconds} }
