package rabbit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/rpc"
)

// Transport is an rpc.Transport over RabbitMQ. Close ends it.
type Transport struct {
	options   Options
	topology  *topology
	publish   *link
	consume   *link
	publisher *publisher

	life context.Context //nolint:containedctx // of the connections: ends with Close, not with a request
	stop context.CancelFunc

	mu      sync.Mutex // guards the fields below
	closed  bool
	started map[*link]bool
	tasks   sync.WaitGroup // grows only while closed is false
}

var _ rpc.Transport = (*Transport)(nil)

// New returns a transport. It checks the options and touches no network: each
// connection is dialled at its first use.
func New(o Options) (*Transport, error) { return newTransport(o, defaultTiming) }

func newTransport(o Options, tm timing) (*Transport, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Hosts = slices.Clone(o.Hosts)
	if o.ConnectionName == "" {
		o.ConnectionName = fmt.Sprintf("compute-agent:%d:%s", os.Getpid(), uuid.NewString())
	}
	t := &Transport{options: o, started: map[*link]bool{}}
	t.life, t.stop = context.WithCancel(context.Background())
	t.topology = &topology{options: &t.options}
	t.publish = newLink("publish", &t.options, tm, o.ConnectionName)
	t.consume = newLink("consume", &t.options, tm, o.ConnectionName)
	t.publisher = &publisher{link: t.publish, topology: t.topology, requests: make(chan *outgoing)}
	return t, nil
}

// Dial is New and a first connection, tried on every host until ctx ends.
func Dial(ctx context.Context, o Options) (*Transport, error) {
	t, err := New(o)
	if err != nil {
		return nil, err
	}
	if err = t.start(t.publish, t.publisher.run); err == nil {
		_, err = t.publish.session(ctx, false)
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	return t, nil
}

// start runs a link, and what belongs to it, once.
func (t *Transport) start(l *link, with ...func(context.Context)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return rpc.ErrClosed
	}
	if t.started[l] {
		return nil
	}
	t.started[l] = true
	for _, run := range append(with, l.run) {
		t.tasks.Go(func() { run(t.life) })
	}
	return nil
}

// Publish implements rpc.Transport.
func (t *Transport) Publish(ctx context.Context, m rpc.Message) error {
	if err := t.start(t.publish, t.publisher.run); err != nil { // the connection outlives the message
		return err
	}
	if !t.options.DirectMandatory {
		m.Mandatory = false
	}
	headers, body, err := compress(t.options.Compression, m.Body)
	if err != nil {
		return err
	}
	wait := newBackoff(&t.options)
	for attempt := 1; ; attempt++ {
		err := t.publishOnce(ctx, &outgoing{
			message: m, body: body, headers: headers, cancelled: ctx.Done(), done: make(chan error, 1),
		})
		switch {
		case err == nil, errors.Is(err, rpc.ErrUnroutable), errors.Is(err, rpc.ErrClosed):
			return err
		case ctx.Err() != nil:
			return err
		case m.Attempts > 0 && attempt >= m.Attempts:
			return fmt.Errorf("publish after %d attempts: %w", attempt, err)
		}
		publishRetries.Inc()
		if errors.Is(err, errAgain) {
			continue
		}
		// While there is no session the link waits; this is for a broker that is there
		// and refuses. The first time it may be another message's fault, which closed
		// the channel for all, or an exchange that went with its last queue.
		if attempt > 1 && t.publish.alive() && !sleep(ctx, wait.next()) {
			return waitError(ctx, err)
		}
	}
}

// publishOnce hands a message to the publisher and waits for its fate.
func (t *Transport) publishOnce(ctx context.Context, o *outgoing) error {
	s, err := t.publish.session(ctx, o.message.Attempts > 0)
	if err != nil {
		return err
	}
	done := s.done
	if o.message.Attempts == 0 {
		done = nil // wait over the loss of the session
	}
	select {
	case t.publisher.requests <- o:
	case <-done:
		return s.err()
	case <-t.life.Done():
		return rpc.ErrClosed
	case <-ctx.Done():
		return waitError(ctx, s.trouble())
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return waitError(ctx, s.trouble())
	}
}

// Consume implements rpc.Transport.
func (t *Transport) Consume(ctx context.Context, sub rpc.Subscription) error {
	if err := t.start(t.consume); err != nil { // other subscriptions share the connection
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.life, cancel)() //nolint:contextcheck // Close ends every subscription
	c := &consumer{link: t.consume, topology: t.topology, sub: sub}
	if err := c.run(ctx); err != nil {
		return err
	}
	if t.life.Err() != nil {
		return rpc.ErrClosed
	}
	return nil
}

// Close ends all subscriptions (with rpc.ErrClosed) and publishes, and the
// connections, within a few seconds. End subscriptions by their contexts first
// for an orderly leave.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.stop()
	t.tasks.Wait()
}
