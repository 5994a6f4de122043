package rpc

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	malformedMessages = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "compute_agent_rpc_malformed_messages_total",
		Help: "Messages that were no valid oslo.messaging messages, by what was wrong.",
	}, []string{"kind"})
	refusedMessages = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "compute_agent_rpc_refused_messages_total",
		Help: "Valid messages that were not executed: duplicate, unsupported_version, no_such_method, unknown_reply.",
	}, []string{"reason"})
	requestSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "compute_agent_rpc_request_seconds",
		Help:    "Run time of served methods, by method and outcome (ok, failure, error, panic).",
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
	}, []string{"method", "outcome"})
	waitingRequests = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "compute_agent_rpc_waiting_requests",
		Help: "Requests that were taken from the broker and wait for a free worker.",
	})
	lostReplies = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "compute_agent_rpc_lost_replies_total",
		Help: "Replies that were given up because their queue is gone or the broker could not be reached.",
	})
	lostNotifications = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "compute_agent_rpc_lost_notifications_total",
		Help: "Notifications that were dropped because the queue was full or the broker refused them.",
	})
)

// Collectors are the measurements of this package, for the agent's registry. They
// are shared by all clients and servers of the process.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		malformedMessages, refusedMessages, requestSeconds, waitingRequests, lostReplies, lostNotifications,
	}
}

// logInterval is how often one kind of fault may be logged.
const logInterval = time.Minute

// quiet limits the log lines of a fault that a peer can cause at will. The zero
// value is usable.
type quiet struct {
	mu     sync.Mutex
	counts map[string]int
	last   map[string]time.Time
}

// allow tells whether to log a fault of that kind now, and how many were kept
// back since the last line.
func (q *quiet) allow(kind string) (suppressed int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == nil {
		q.counts, q.last = map[string]int{}, map[string]time.Time{}
	}
	if last, seen := q.last[kind]; seen && time.Since(last) < logInterval {
		q.counts[kind]++
		return 0, false
	}
	suppressed, q.counts[kind], q.last[kind] = q.counts[kind], 0, time.Now()
	return suppressed, true
}
