// Package rpctest holds an in-memory broker for unit tests of what uses package
// rpc. It needs no network and works inside testing/synctest.
package rpctest

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/rpc"
)

// Broker is an rpc.Transport that keeps exchanges and queues in memory. Every
// client and server of a test shares one. The zero value is not usable.
type Broker struct {
	mu       sync.Mutex // guards the fields below
	queues   map[string]*queue
	sent     []rpc.Message
	fault    func(rpc.Message) error
	sequence int
	changed  chan struct{} // closed and replaced when a message arrives
}

type queue struct {
	binding  rpc.Queue
	messages []item
}

type item struct {
	sequence int
	body     []byte
	lifetime time.Duration
	expires  time.Time // zero: never
}

var _ rpc.Transport = (*Broker)(nil)

// NewBroker returns an empty broker.
func NewBroker() *Broker {
	return &Broker{queues: map[string]*queue{}, changed: make(chan struct{})}
}

// SetFault has every later Publish ask f first; an error of f is what Publish
// returns. nil ends it.
func (b *Broker) SetFault(f func(rpc.Message) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = f
}

// Sent returns every message that was published so far, in order, routed or not.
func (b *Broker) Sent() []rpc.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sent)
}

// Queues returns the names of the queues that exist, sorted.
func (b *Broker) Queues() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := make([]string, 0, len(b.queues))
	for name := range b.queues {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Members decodes the inner message of a body: method, args, _msg_id and so on.
func Members(body []byte) (map[string]json.RawMessage, error) {
	inner, err := rpc.DecodeEnvelope(body)
	if err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	return members, json.Unmarshal(inner, &members)
}

// Publish implements rpc.Transport.
func (b *Broker) Publish(ctx context.Context, m rpc.Message) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	b.mu.Lock()
	fault := b.fault
	b.mu.Unlock()
	if fault != nil {
		if err := fault(m); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent = append(b.sent, m)
	if m.Queue != nil {
		b.declare(*m.Queue)
	}
	routed := false
	for name, q := range b.queues {
		if !matches(m, name, q.binding) {
			continue
		}
		routed = true
		b.sequence++
		it := item{sequence: b.sequence, body: m.Body, lifetime: m.Expiration}
		if m.Expiration > 0 {
			it.expires = time.Now().Add(m.Expiration)
		}
		q.messages = append(q.messages, it)
	}
	if routed {
		close(b.changed)
		b.changed = make(chan struct{})
	} else if m.Mandatory {
		return rpc.ErrUnroutable
	}
	return nil
}

// matches tells whether a message goes to a queue.
func matches(m rpc.Message, name string, binding rpc.Queue) bool {
	switch m.Exchange.Kind {
	case rpc.ExchangeFanout:
		return binding.Exchange == m.Exchange
	case rpc.ExchangeTopic:
		return binding.Exchange == m.Exchange && binding.RoutingKey == m.RoutingKey
	case rpc.ExchangeDefault:
	}
	return name == m.RoutingKey
}

func (b *Broker) declare(q rpc.Queue) {
	if b.queues[q.Name] == nil {
		b.queues[q.Name] = &queue{binding: q}
	}
}

// Consume implements rpc.Transport.
func (b *Broker) Consume(ctx context.Context, s rpc.Subscription) error {
	b.mu.Lock()
	for _, q := range s.Queues {
		b.declare(q)
	}
	b.mu.Unlock()
	if s.Ready != nil {
		s.Ready()
	}
	for ctx.Err() == nil {
		d, ok, changed := b.pop(s.Queues)
		if ok {
			s.Handle(d)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range s.Queues {
		if q.Kind == rpc.QueueFanout {
			delete(b.queues, q.Name)
		}
	}
	return nil
}

// pop takes the oldest message of some queues, or gives the channel that tells of the next.
func (b *Broker) pop(from []rpc.Queue) (rpc.Delivery, bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var oldest *queue
	for _, name := range from {
		q := b.queues[name.Name]
		if q == nil {
			continue
		}
		q.messages = slices.DeleteFunc(q.messages, func(it item) bool {
			return !it.expires.IsZero() && time.Now().After(it.expires)
		})
		if len(q.messages) > 0 && (oldest == nil || q.messages[0].sequence < oldest.messages[0].sequence) {
			oldest = q
		}
	}
	if oldest == nil {
		return rpc.Delivery{}, false, b.changed
	}
	it := oldest.messages[0]
	oldest.messages = oldest.messages[1:]
	return rpc.Delivery{Queue: oldest.binding.Name, Body: it.body, Expiration: it.lifetime}, true, b.changed
}
