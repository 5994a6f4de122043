package rpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Timing of replies whose queue does not exist (amqpdriver.py:AMQPIncomingMessage.reply
// and ObsoleteReplyQueuesCache).
const (
	replyRetry    = 250 * time.Millisecond
	replyPatience = 60 * time.Second // kombu_missing_consumer_retry_timeout
	deadFor       = 60 * time.Second
	deadSize      = 200
)

// sendReply publishes a reply. A returned one is sent again beside the worker,
// so that callers that died do not take workers away from the living.
func (s *Server) sendReply(ctx context.Context, r *request, body []byte) {
	if s.dead.contains(r.replyTo) {
		lostReplies.Inc()
		reqctx.Log(ctx).WithField("queue", r.replyTo).Warning("reply dropped, its queue is gone")
		return
	}
	// Long enough for the caller's whole time, and for insist to come to its own end.
	ctx, cancel := context.WithTimeout(ctx, max(2*replyPatience, r.expiration))
	message := Message{RoutingKey: r.replyTo, Body: body, Mandatory: true}
	err := s.transport.Publish(ctx, message)
	if errors.Is(err, ErrUnroutable) {
		s.tasks.Go(func() {
			defer cancel()
			s.insist(ctx, message)
		})
		return
	}
	cancel()
	if err != nil {
		lostReplies.Inc()
		reqctx.Log(ctx).WithError(err).WithField("queue", r.replyTo).Error("reply was not sent")
	}
}

// insist sends a returned reply again until its queue exists or is called dead.
func (s *Server) insist(ctx context.Context, m Message) {
	giveUp := time.NewTimer(replyPatience)
	defer giveUp.Stop()
	again := time.NewTicker(replyRetry)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-giveUp.C:
			s.dead.add(m.RoutingKey)
			lostReplies.Inc()
			reqctx.Log(ctx).WithField("queue", m.RoutingKey).Warning("reply dropped, its queue does not exist")
			return
		case <-ctx.Done():
			lostReplies.Inc()
			reqctx.Log(ctx).WithField("queue", m.RoutingKey).Warning("reply dropped, its time is over")
			return
		}
		err := s.transport.Publish(ctx, m)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrUnroutable) && ctx.Err() == nil {
			lostReplies.Inc()
			reqctx.Log(ctx).WithError(err).WithField("queue", m.RoutingKey).Error("reply was not sent")
			return
		}
	}
}

// startBeats sends a sign of life every half of the caller's monitor time until
// the returned function is called, which waits for the last one. A call without
// _timeout must never get one: its client fails on it
// (dispatcher.py:RPCDispatcher._watchdog).
func (s *Server) startBeats(ctx context.Context, r *request) (stop func()) {
	if r.monitor < 2 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		interval := time.Duration(r.monitor) * time.Second / 2
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				s.beat(ctx, r, interval)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// beat sends one sign of life; one that gets lost is not worth more than a line.
func (s *Server) beat(ctx context.Context, r *request, patience time.Duration) {
	body, err := (&reply{msgID: r.msgID, uniqueID: newID()}).encode()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err = s.transport.Publish(ctx, Message{RoutingKey: r.replyTo, Body: body, Mandatory: true})
	}
	if err != nil && ctx.Err() == nil {
		reqctx.Log(ctx).WithError(err).Debug("sign of life was not sent")
	}
}

// deadQueues remembers reply queues that were given up. The zero value is empty.
type deadQueues struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (d *deadQueues) contains(queue string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, ok := d.until[queue]
	return ok && time.Now().Before(until)
}

// add remembers a queue; expired entries go first, then any, to hold the bound.
func (d *deadQueues) add(queue string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if d.until == nil {
		d.until = map[string]time.Time{}
	}
	for name, until := range d.until {
		if now.After(until) {
			delete(d.until, name)
		}
	}
	for name := range d.until {
		if len(d.until) < deadSize {
			break
		}
		delete(d.until, name)
	}
	d.until[queue] = now.Add(deadFor)
}
