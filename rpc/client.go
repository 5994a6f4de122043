package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// ErrTimeout is oslo.messaging's MessagingTimeout: no reply, or no sign of life of
// a monitored call, within the time of the target. The request may still run.
var ErrTimeout = errors.New("no reply in time")

// Defaults of [DEFAULT] control_exchange (nova) and rpc_response_timeout.
const (
	defaultExchange = "nova"
	defaultTimeout  = 60 * time.Second
)

// ClientOptions are the settings of a Client.
type ClientOptions struct {
	Exchange string        // control_exchange; "" is "nova"
	Timeout  time.Duration // of a call without its own; 0 is 60 s
}

// Client calls methods of other services. It is safe for concurrent use. The
// reply queue is declared at the first call and kept until Close.
type Client struct {
	transport  Transport
	exchange   Exchange
	timeout    time.Duration
	replyQueue string
	log        quiet

	mu      sync.Mutex // guards the fields below
	waiters map[string]*waiter
	stop    context.CancelFunc // nil until the reply queue is consumed
	closed  bool
	ready   chan struct{} // closed by the first Ready of the subscription
	done    chan struct{} // closed when the consumer ended
	failure error         // why the consumer ended; set before done is closed

	recent recent // only touched by the subscription's handler
}

// waiter is one call that waits for its reply.
type waiter struct {
	final    chan *reply   // capacity 1: exactly one final reply is taken
	beat     chan struct{} // capacity 1: a sign of life that is not yet seen is enough
	answered context.CancelFunc
}

// NewClient returns a client; it does nothing until it is used.
func NewClient(t Transport, o ClientOptions) *Client {
	if o.Exchange == "" {
		o.Exchange = defaultExchange
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	return &Client{
		transport: t, exchange: Exchange{Name: o.Exchange, Kind: ExchangeTopic}, timeout: o.Timeout,
		replyQueue: "reply_" + newID(), waiters: map[string]*waiter{},
		ready: make(chan struct{}), done: make(chan struct{}),
	}
}

// Call runs a method of the target and returns its result, JSON null for None.
// The error is a *Failure (errors.As) if the method failed, wraps ErrTimeout if no
// reply came, and wraps the context's error if ctx ended first. While the broker
// is away the request is published again until its time is over.
func (c *Client) Call(ctx context.Context, t Target, method string, args map[string]any) (json.RawMessage, error) {
	result, err := c.call(ctx, t, method, args)
	if err != nil {
		return nil, fmt.Errorf("call %s of %s: %w", method, t.routingKey(), err)
	}
	return result, nil
}

func (c *Client) call(ctx context.Context, t Target, method string, args map[string]any) (json.RawMessage, error) {
	timeout := t.Timeout
	if timeout <= 0 {
		timeout = c.timeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrTimeout)
	defer cancel()
	req, err := newRequest(ctx, t, method, args)
	if err != nil {
		return nil, err
	}
	req.msgID, req.replyTo, req.monitor = newID(), c.replyQueue, int(t.Monitor/time.Second)
	body, err := req.encode()
	if err != nil {
		return nil, err
	}
	if err := c.listen(ctx); err != nil {
		return nil, err
	}
	// The publish ends as soon as the answer is here, confirmed or not.
	publishCtx, answered := context.WithCancel(ctx)
	defer answered()
	w := c.register(req.msgID, answered)
	defer c.forget(req.msgID)
	err = c.transport.Publish(publishCtx, Message{
		Exchange: c.exchange, RoutingKey: t.routingKey(), Body: body, Expiration: timeout,
	})
	if err != nil && publishCtx.Err() == nil {
		return nil, err
	}
	return c.wait(ctx, w, time.Duration(req.monitor)*time.Second, err)
}

// wait blocks until the final reply. publishErr is what the publish last said, for the error text.
func (c *Client) wait(ctx context.Context, w *waiter, monitor time.Duration, publishErr error) (json.RawMessage, error) {
	var silence <-chan time.Time
	var timer *time.Timer
	if monitor > 0 {
		timer = time.NewTimer(monitor)
		defer timer.Stop()
		silence = timer.C
	}
	for {
		select { // a reply that is here wins over an end of the wait
		case r := <-w.final:
			return r.value()
		default:
		}
		select {
		case r := <-w.final:
			return r.value()
		case <-w.beat:
			if timer != nil {
				timer.Reset(monitor)
			}
		case <-silence:
			return nil, fmt.Errorf("no sign of life for %s: %w", monitor, ErrTimeout)
		case <-ctx.Done():
			if publishErr != nil {
				return nil, fmt.Errorf("%w (%w)", context.Cause(ctx), publishErr)
			}
			return nil, context.Cause(ctx)
		case <-c.done:
			return nil, c.endError()
		}
	}
}

// value gives what a final reply says.
func (r *reply) value() (json.RawMessage, error) {
	if r.failure != nil {
		return nil, r.failure
	}
	if len(r.result) == 0 {
		return json.RawMessage("null"), nil
	}
	return r.result, nil
}

// Cast sends a request that nobody answers. It returns once the broker has it,
// and tries until ctx ends.
func (c *Client) Cast(ctx context.Context, t Target, method string, args map[string]any) error {
	return c.send(ctx, t, method, args, c.exchange, t.routingKey())
}

// Fanout is a Cast to every server of the target's topic.
func (c *Client) Fanout(ctx context.Context, t Target, method string, args map[string]any) error {
	return c.send(ctx, t, method, args, fanoutExchange(t.Topic), "")
}

func (c *Client) send(ctx context.Context, t Target, method string, args map[string]any, to Exchange, key string) error {
	req, err := newRequest(ctx, t, method, args)
	if err != nil {
		return fmt.Errorf("cast %s to %s: %w", method, t.routingKey(), err)
	}
	body, err := req.encode()
	if err != nil {
		return fmt.Errorf("cast %s to %s: %w", method, t.routingKey(), err)
	}
	if err := c.transport.Publish(ctx, Message{Exchange: to, RoutingKey: key, Body: body}); err != nil {
		return fmt.Errorf("cast %s to %s: %w", method, t.routingKey(), err)
	}
	return nil
}

// newRequest builds what calls and casts have in common.
func newRequest(ctx context.Context, t Target, method string, args map[string]any) (*request, error) {
	if args == nil {
		args = map[string]any{}
	}
	raw, err := marshal(args)
	if err != nil {
		return nil, err
	}
	version := t.Version
	if version == "" {
		version = "1.0"
	}
	return &request{
		method: method, args: raw, namespace: t.Namespace, version: version,
		uniqueID: newID(), context: reqctx.From(ctx).Map(),
	}, nil
}

// listen starts the consumer of the reply queue once and waits until the queue exists.
func (c *Client) listen(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	if c.stop == nil {
		consumeCtx, stop := context.WithCancel(context.Background())
		c.stop = stop
		go c.consume(consumeCtx) //nolint:contextcheck // the queue serves every later call too
	}
	c.mu.Unlock()
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return c.endError()
	case <-ctx.Done():
		return fmt.Errorf("declare reply queue: %w", context.Cause(ctx))
	}
}

func (c *Client) consume(ctx context.Context) {
	defer close(c.done)
	var once sync.Once
	err := c.transport.Consume(ctx, Subscription{
		Queues: []Queue{{Name: c.replyQueue, Kind: QueueReply, RoutingKey: c.replyQueue}},
		Handle: func(d Delivery) { c.handle(ctx, d) },
		Ready:  func() { once.Do(func() { close(c.ready) }) },
	})
	if err == nil {
		err = ErrClosed
	}
	c.mu.Lock()
	c.failure = fmt.Errorf("consume reply queue: %w", err)
	c.mu.Unlock()
}

func (c *Client) endError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// handle gives a reply to its waiter (amqpdriver.py:ReplyWaiters.put).
func (c *Client) handle(ctx context.Context, d Delivery) {
	r, err := decodeReply(d.Body)
	if err != nil {
		countMalformed(ctx, &c.log, err, d)
		return
	}
	if c.recent.seen(r.uniqueID) {
		refusedMessages.WithLabelValues("duplicate").Inc()
		return
	}
	c.mu.Lock()
	w := c.waiters[r.msgID]
	c.mu.Unlock()
	if w == nil { // the call gave up before
		refusedMessages.WithLabelValues("unknown_reply").Inc()
		return
	}
	if !r.ending {
		select {
		case w.beat <- struct{}{}:
		default:
		}
		return
	}
	select {
	case w.final <- r:
		w.answered()
	default:
	}
}

func (c *Client) register(msgID string, answered context.CancelFunc) *waiter {
	w := &waiter{final: make(chan *reply, 1), beat: make(chan struct{}, 1), answered: answered}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters[msgID] = w
	return w
}

func (c *Client) forget(msgID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiters, msgID)
}

// Close ends the reply consumer and every call that waits (with ErrClosed). The
// Transport stays open.
func (c *Client) Close() {
	c.mu.Lock()
	stop := c.stop
	c.closed = true
	c.mu.Unlock()
	if stop != nil {
		stop()
		<-c.done
	}
}
