package rabbit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/streadway/amqp"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// window is how many publishes may wait for their confirms. It bounds what the
// broker can send on the notification channels, which are as large.
const window = 128

// errNack tells that the broker refused responsibility for a message.
var errNack = errors.New("broker did not take the message")

// outgoing is one publish on its way.
type outgoing struct {
	message   rpc.Message
	body      []byte
	headers   amqp.Table
	cancelled <-chan struct{} // the caller does not wait any more
	done      chan error      // capacity 1
	sent      time.Time
	returned  bool
}

func (o *outgoing) finish(err error) { o.done <- err }

// publisher owns the publishing channel of a link. Callers hand it messages
// through requests; it takes one only while it could publish it.
type publisher struct {
	link     *link
	topology *topology
	requests chan *outgoing
}

// run serves until ctx ends, over any number of sessions and channels.
func (p *publisher) run(ctx context.Context) {
	for {
		s, err := p.link.session(ctx, false)
		if err != nil {
			return
		}
		err = p.serve(ctx, s)
		if ctx.Err() != nil {
			return
		}
		reqctx.Log(ctx).WithError(err).Debug("publishing channel ended")
		if s.err() != nil {
			continue // the link waits for the next session
		}
		if !sleep(ctx, 10*time.Millisecond) { // a channel that is refused at once must not spin
			return
		}
	}
}

// flight is the state of one publishing channel; only serve's goroutine touches it.
type flight struct {
	*publisher
	session  *session
	channel  *amqp.Channel
	declared map[string]bool
	pending  map[uint64]*outgoing // by delivery tag
	tag      uint64               // of the last publish
	returns  chan amqp.Return
}

// serve opens a channel in confirm mode and publishes until it, the session or
// ctx ends. What is pending then fails, and its callers decide.
func (p *publisher) serve(ctx context.Context, s *session) (err error) {
	f := &flight{publisher: p, session: s, declared: map[string]bool{}, pending: map[uint64]*outgoing{}}
	err = s.do("open channel", func() (err error) {
		if f.channel, err = s.conn.Channel(); err != nil {
			return err
		}
		return f.channel.Confirm(false)
	})
	if err != nil {
		return err
	}
	// Each publish causes at most one message on each of these.
	f.returns = f.channel.NotifyReturn(make(chan amqp.Return, window))
	confirms := f.channel.NotifyPublish(make(chan amqp.Confirmation, window))
	closed := f.channel.NotifyClose(make(chan *amqp.Error, 1))
	defer func() {
		if s.err() == nil && !isClosed(closed) {
			_ = s.do("close channel", f.channel.Close)
		}
		for _, o := range f.pending {
			o.finish(fmt.Errorf("publish: %w", err))
		}
	}()
	overdue := time.NewTicker(s.timing.confirm / 4)
	defer overdue.Stop()
	for {
		var requests chan *outgoing
		if len(f.pending) < window && !s.blocked.Load() {
			requests = p.requests
		}
		select {
		case o := <-requests:
			if err := f.publish(ctx, o); err != nil {
				o.finish(err)
				return err
			}
		case c, ok := <-confirms:
			if ok {
				f.confirm(c)
			} else {
				confirms = nil // closed says why
			}
		case r, ok := <-f.returns:
			if ok {
				f.markReturned(r)
			} else {
				f.returns = nil
			}
		case e := <-closed:
			if e == nil {
				return amqp.ErrClosed
			}
			return e
		case <-overdue.C:
			if err := f.checkOverdue(); err != nil {
				s.end(err)
				return err
			}
		case <-s.flow:
		case <-s.done:
			return s.err()
		case <-ctx.Done():
			return rpc.ErrClosed
		}
	}
}

// publish declares what the message needs and writes it.
func (f *flight) publish(ctx context.Context, o *outgoing) error {
	select {
	case <-o.cancelled:
		o.finish(context.Canceled)
		return nil
	default:
	}
	m := o.message
	if q := m.Queue; q != nil && !f.declared["queue "+q.Name] {
		if err := f.topology.declareQueue(ctx, f.session, f.channel, *q); err != nil {
			return err
		}
		f.declared["queue "+q.Name], f.declared[m.Exchange.Name] = true, true
	}
	if !f.declared[m.Exchange.Name] {
		if err := f.topology.declareExchange(ctx, f.session, f.channel, m.Exchange); err != nil {
			return err
		}
		f.declared[m.Exchange.Name] = true
	}
	publishing := amqp.Publishing{
		Headers: o.headers, ContentType: "application/json", ContentEncoding: "utf-8",
		DeliveryMode: amqp.Persistent, Body: o.body,
	}
	if m.Expiration > 0 {
		publishing.Expiration = strconv.FormatInt(m.Expiration.Milliseconds(), 10)
	}
	err := f.session.do("publish", func() error {
		return f.channel.Publish(m.Exchange.Name, m.RoutingKey, m.Mandatory, false, publishing)
	})
	if err != nil {
		return err
	}
	f.tag++
	o.sent = time.Now()
	f.pending[f.tag] = o
	return nil
}

// confirm ends a publish. Its return, if any, came before and is in the channel.
func (f *flight) confirm(c amqp.Confirmation) {
	for drained := false; !drained; {
		select {
		case r, ok := <-f.returns:
			if !ok {
				f.returns = nil
				drained = true
			} else {
				f.markReturned(r)
			}
		default:
			drained = true
		}
	}
	o, ok := f.pending[c.DeliveryTag]
	if !ok {
		return
	}
	delete(f.pending, c.DeliveryTag)
	switch {
	case !c.Ack:
		o.finish(errNack)
	case o.returned:
		o.finish(rpc.ErrUnroutable)
	default:
		o.finish(nil)
	}
}

// markReturned finds the publish of a returned message by its body, which holds
// a unique id.
func (f *flight) markReturned(r amqp.Return) {
	for _, o := range f.pending {
		if !o.returned && o.message.RoutingKey == r.RoutingKey && bytes.Equal(o.body, r.Body) {
			o.returned = true
			return
		}
	}
}

// checkOverdue is the watchdog of confirms; a blocked broker confirms nothing.
func (f *flight) checkOverdue() error {
	if f.session.blocked.Load() {
		return nil
	}
	for _, o := range f.pending {
		if time.Since(o.sent) > f.session.timing.confirm {
			return fmt.Errorf("publish: no confirm from the broker for %s", f.session.timing.confirm)
		}
	}
	return nil
}
