package rpc

import (
	"context"
	"errors"
	"time"
)

// ErrUnroutable tells that a mandatory message found no queue. It is final: a
// Transport does not retry it.
var ErrUnroutable = errors.New("no queue for a mandatory message")

// ErrClosed tells that the Transport, Client or Notifier was closed.
var ErrClosed = errors.New("closed")

// ExchangeKind selects the type of an exchange.
type ExchangeKind int

// The exchange types that oslo.messaging uses; ExchangeDefault is the broker's
// nameless exchange, which routes by queue name and is never declared.
const (
	ExchangeDefault ExchangeKind = iota
	ExchangeTopic
	ExchangeFanout
)

// Exchange names an exchange. Flags (durable, auto-delete) follow from the kind
// and the options of the Transport. The zero value is the default exchange.
type Exchange struct {
	Name string
	Kind ExchangeKind
}

// QueueKind selects flags and arguments of a queue.
type QueueKind int

// QueueTopic is a shared or addressed queue that outlives its consumer;
// QueueFanout belongs to one server and is deleted when its Consume ends;
// QueueReply belongs to one client and is left to the broker's expiry.
const (
	QueueTopic QueueKind = iota
	QueueFanout
	QueueReply
)

// Queue names a queue and its one binding.
type Queue struct {
	Name       string
	Kind       QueueKind
	Exchange   Exchange // zero for a reply queue: no binding
	RoutingKey string
}

// Message is one message to publish. The body is a complete envelope.
type Message struct {
	Exchange   Exchange
	RoutingKey string
	// Queue, when set, is declared and bound before the first publish
	// (notifications: the publisher owns the queue).
	Queue *Queue
	Body  []byte
	// Expiration is the life of the message in a queue; 0 means unlimited.
	Expiration time.Duration
	// Mandatory asks for ErrUnroutable if no queue takes the message.
	Mandatory bool
	// Attempts bounds the number of tries; 0 means until the context ends.
	Attempts int
}

// Delivery is one message that was received and acknowledged.
type Delivery struct {
	Queue      string
	Body       []byte
	Expiration time.Duration // as sent; 0 if the message had none
}

// Subscription says what to consume and what to do with it.
type Subscription struct {
	Queues []Queue
	// Handle is called for each delivery after its acknowledgement, one at a
	// time and in order of arrival per queue. It must not block.
	Handle func(Delivery)
	// Ready, if set, is called each time when all queues are declared and
	// consumed: at the first time and after every reconnect.
	Ready func()
}

// Transport carries messages. Its methods may be called concurrently.
type Transport interface {
	// Publish returns once the broker has taken the message over. A lost
	// connection, a blocked broker or a refused declaration is waited out and
	// tried again until ctx ends (or m.Attempts are used up), so a message can
	// reach its queue twice; receivers drop the second by its _unique_id.
	Publish(ctx context.Context, m Message) error
	// Consume declares the queues and hands out their messages until ctx ends,
	// over any number of reconnects. Messages that were not yet handed out at
	// the end go back to their queues; fan-out queues are deleted. It returns
	// nil after ctx ended, and an error only if it cannot go on at all.
	Consume(ctx context.Context, s Subscription) error
}
