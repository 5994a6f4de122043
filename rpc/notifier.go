package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ErrQueueFull tells that a notification was dropped because the broker has not
// taken the ones before it.
var ErrQueueFull = errors.New("notification queue is full")

const (
	// defaultQueueSize holds the events of some hundred operations while the broker is away.
	defaultQueueSize = 4096
	// flushPatience is how long Close waits for queued notifications.
	flushPatience = 5 * time.Second
)

// NotifierOptions are the settings of a Notifier.
type NotifierOptions struct {
	Exchange string // control_exchange; "" is "nova"
	// Drivers of [oslo_messaging_notifications] driver: "messagingv2" (envelope
	// 2.0), "messaging" (bare message), "log", "noop". None, "" and "noop": nothing leaves.
	Drivers []string
	Topics  []string // used when Notify is given none; empty is "notifications"
	// Retry is how often a failed send is tried again: -1 for ever, 0 never.
	Retry     int
	QueueSize int // notifications that may wait in memory; 0 is 4096
}

// Notifier sends notifications (oslo_messaging/notify/notifier.py). Notify never
// waits for the broker: a goroutine, started at the first notification, sends them
// in their order. Close ends it.
type Notifier struct {
	transport Transport
	exchange  Exchange
	topics    []string
	attempts  int
	envelope  bool // messagingv2
	bare      bool // messaging
	toLog     bool // log
	quiet     quiet

	mu     sync.Mutex // guards the fields below, and sending to queue against its close
	queue  chan Message
	closed bool
	stop   context.CancelFunc // nil until the first notification
	done   chan struct{}
}

// NewNotifier returns a notifier. An unknown driver is an error.
func NewNotifier(t Transport, o NotifierOptions) (*Notifier, error) {
	if o.Exchange == "" {
		o.Exchange = defaultExchange
	}
	if len(o.Topics) == 0 {
		o.Topics = []string{"notifications"}
	}
	if o.QueueSize <= 0 {
		o.QueueSize = defaultQueueSize
	}
	n := &Notifier{
		transport: t, exchange: Exchange{Name: o.Exchange, Kind: ExchangeTopic}, topics: o.Topics,
		queue: make(chan Message, o.QueueSize), done: make(chan struct{}),
	}
	if o.Retry >= 0 {
		n.attempts = o.Retry + 1
	}
	for _, driver := range o.Drivers {
		switch driver {
		case "", "noop":
		case "messagingv2":
			n.envelope = true
		case "messaging":
			n.bare = true
		case "log":
			n.toLog = true
		default:
			return nil, fmt.Errorf("notification driver %q: want messagingv2, messaging, log or noop", driver)
		}
	}
	return n, nil
}

// Enabled tells whether any notification leaves, so that callers need not build one.
func (n *Notifier) Enabled() bool { return n.envelope || n.bare || n.toLog }

// Notify queues one notification per topic (nil: the configured ones) with the
// request context of ctx, without its secrets. priority is "INFO", "ERROR",
// "WARN", "DEBUG" or "CRITICAL". The error tells that the payload cannot be encoded,
// that the queue is full (ErrQueueFull) or that the notifier is closed; no operation
// should fail on it.
func (n *Notifier) Notify(ctx context.Context, topics []string, priority, publisherID, eventType string, payload any) error {
	if !n.Enabled() {
		return nil
	}
	inner, err := encodeNotification(ctx, priority, publisherID, eventType, payload)
	if err != nil {
		return fmt.Errorf("notify %s: %w", eventType, err)
	}
	if n.toLog {
		reqctx.Log(ctx).WithField("event_type", eventType).WithField("priority", priority).
			WithField("notification", string(inner)).Info("notification")
	}
	if topics == nil {
		topics = n.topics
	}
	var bodies [][]byte
	if n.envelope {
		bodies = append(bodies, wrap(inner))
	}
	if n.bare {
		bodies = append(bodies, inner)
	}
	for _, topic := range topics {
		name := topic + "." + strings.ToLower(priority)
		for _, body := range bodies {
			err := n.enqueue(Message{ //nolint:contextcheck // the sender serves every later notification too
				Exchange: n.exchange, RoutingKey: name, Body: body, Attempts: n.attempts,
				Queue: &Queue{Name: name, Kind: QueueTopic, Exchange: n.exchange, RoutingKey: name},
			})
			if err != nil {
				return fmt.Errorf("notify %s: %w", eventType, err)
			}
		}
	}
	return nil
}

func (n *Notifier) enqueue(m Message) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	if n.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		n.stop = stop
		go n.send(ctx)
	}
	select {
	case n.queue <- m:
		return nil
	default:
		lostNotifications.Inc()
		return ErrQueueFull
	}
}

// send publishes what is queued, one after the other, until the queue is closed.
func (n *Notifier) send(ctx context.Context) {
	defer close(n.done)
	for m := range n.queue {
		if err := n.transport.Publish(ctx, m); err != nil {
			lostNotifications.Inc()
			if suppressed, ok := n.quiet.allow("publish"); ok {
				reqctx.Log(ctx).WithError(err).WithField("queue", m.RoutingKey).WithField("suppressed", suppressed).
					Warning("notification was not sent")
			}
		}
	}
}

// Close sends what is queued for up to five seconds, drops the rest and ends the
// sender. The Transport stays open.
func (n *Notifier) Close() {
	n.mu.Lock()
	stop := n.stop
	if !n.closed {
		n.closed = true
		close(n.queue)
	}
	n.mu.Unlock()
	if stop == nil {
		return
	}
	timer := time.AfterFunc(flushPatience, stop)
	<-n.done
	timer.Stop()
	stop()
}

// encodeNotification builds the inner message (notify/notifier.py:Notifier._notify).
func encodeNotification(ctx context.Context, priority, publisherID, eventType string, payload any) ([]byte, error) {
	var o object
	now := time.Now().UTC()
	o.add("message_id", uuid.NewString())
	o.add("publisher_id", publisherID)
	o.add("event_type", eventType)
	o.add("priority", strings.ToUpper(priority))
	o.add("payload", payload)
	o.add("timestamp", pythonTime(now))
	o.add("_unique_id", newID())
	addContext(&o, redacted(reqctx.From(ctx).Map(), now))
	return o.bytes()
}

// pythonTime is str() of a naive datetime: no fraction if it is zero.
func pythonTime(t time.Time) string {
	if t.Nanosecond()/1000 == 0 {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05.000000")
}

// redacted is a context without what grants access, and with its own time
// (oslo_context/context.py:RequestContext.redacted_copy).
func redacted(context map[string]json.RawMessage, now time.Time) map[string]json.RawMessage {
	safe := make(map[string]json.RawMessage, len(contextOrder))
	defaults := (&reqctx.Request{}).Map()
	for _, key := range contextOrder {
		if v, ok := context[key]; ok {
			safe[key] = v
		} else {
			safe[key] = defaults[key]
		}
	}
	safe["auth_token"] = json.RawMessage("null")
	safe["service_catalog"] = json.RawMessage("[]")
	safe["remote_address"] = json.RawMessage("null")
	safe["timestamp"] = json.RawMessage(`"` + now.Format("2006-01-02T15:04:05.000000") + `"`)
	return safe
}
