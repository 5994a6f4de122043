package rabbit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/streadway/amqp"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// errCancelled tells that the broker cancelled a consumer: its queue was deleted
// or moved to another node.
var errCancelled = errors.New("consumer cancelled by the broker")

// consumer runs one subscription.
type consumer struct {
	link     *link
	topology *topology
	sub      rpc.Subscription
	offset   any // where to continue in a stream; nil is its last chunk
}

// run consumes until ctx ends.
func (c *consumer) run(ctx context.Context) error {
	wait := newBackoff(c.link.options)
	for {
		s, err := c.link.session(ctx, false)
		if err != nil {
			return nil //nolint:nilerr // the only error is the end of ctx, which is the end of the job
		}
		began := time.Now()
		ready, err := c.serve(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errAgain) {
			continue
		}
		log := reqctx.Log(ctx).WithError(err).WithField("queue", c.sub.Queues[len(c.sub.Queues)-1].Name)
		if ready {
			wait.reset()
		}
		if s.err() != nil { // the link has its own back-off
			log.Debug("consumers stopped")
			if hasCode(err, amqp.InternalError) && !sleep(ctx, internalErrorPause) {
				return nil
			}
			continue
		}
		log.Warning("consumers stopped, declaring again")
		pause := wait.next()
		if ready && time.Since(began) > pause {
			pause = 0
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// internalErrorPause is how long a broker gets that answered 541, which it does
// while a queue elects its leader.
const internalErrorPause = 2 * time.Second

// arrival is a delivery and the queue that it came from.
type arrival struct {
	amqp.Delivery
	queue rpc.Queue
}

// serve declares and consumes on a channel of its own until it, the session or
// ctx ends. It tells whether all queues were consumed.
func (c *consumer) serve(ctx context.Context, s *session) (ready bool, err error) {
	var ch *amqp.Channel
	if err := s.do("open channel", func() (err error) {
		ch, err = s.conn.Channel()
		return err
	}); err != nil {
		return false, err
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	cancels := ch.NotifyCancel(make(chan string, len(c.sub.Queues)))
	arrivals, stop := make(chan arrival), make(chan struct{})
	var forwarders sync.WaitGroup
	defer forwarders.Wait()
	defer func() {
		close(stop)
		if s.err() == nil && !isClosed(closed) {
			_ = s.do("close channel", ch.Close) // gives back what was not acknowledged
		}
	}()
	if err := c.start(ctx, s, ch, &forwarders, arrivals, stop); err != nil {
		return false, err
	}
	if c.sub.Ready != nil {
		c.sub.Ready()
	}
	for {
		select {
		case a := <-arrivals:
			c.take(ctx, a)
		case tag, ok := <-cancels:
			if !ok { // the channel ended; closed says why
				cancels = nil
				continue
			}
			c.offset = nil
			return true, fmt.Errorf("consumer %s: %w", tag, errCancelled)
		case e := <-closed:
			if e == nil {
				return true, amqp.ErrClosed
			}
			return true, e
		case <-s.done:
			return true, s.err()
		case <-ctx.Done():
			c.leave(s, ch)
			return true, ctx.Err()
		}
	}
}

// isClosed tells whether the broker has closed a channel. Closing it once more
// could hit another one that got its number.
func isClosed(notified <-chan *amqp.Error) bool {
	select {
	case <-notified: //nolint:errcheck // why it was closed does not matter here
		return true
	default:
		return false
	}
}

// start declares the queues and starts a consumer and its forwarder for each.
func (c *consumer) start(ctx context.Context, s *session, ch *amqp.Channel, forwarders *sync.WaitGroup, arrivals chan<- arrival, stop <-chan struct{}) error {
	if n := c.link.options.Prefetch; n > 0 {
		if err := s.do("set qos", func() error { return ch.Qos(n, 0, false) }); err != nil {
			return err
		}
	}
	for _, q := range c.sub.Queues {
		if err := c.topology.declareQueue(ctx, s, ch, q); err != nil {
			return err
		}
	}
	for i, q := range c.sub.Queues {
		var deliveries <-chan amqp.Delivery
		name := c.topology.queueName(q)
		err := s.do("consume "+name, func() (err error) {
			deliveries, err = ch.Consume(name, strconv.Itoa(i+1), false, false, false, false, c.consumeArguments(q))
			return err
		})
		if err != nil {
			return err
		}
		forwarders.Go(func() { forward(deliveries, q, arrivals, stop) })
	}
	return nil
}

func (c *consumer) consumeArguments(q rpc.Queue) amqp.Table {
	args := amqp.Table{}
	if c.link.options.CancelOnFailover {
		args["x-cancel-on-ha-failover"] = true
	}
	if c.topology.isStream(q) {
		args["x-stream-offset"] = "last"
		if c.offset != nil {
			args["x-stream-offset"] = c.offset
		}
	}
	return args
}

// forward hands deliveries to the owner of the channel. After stop it drops them
// without an acknowledgement until the library closes their channel.
func forward(deliveries <-chan amqp.Delivery, q rpc.Queue, arrivals chan<- arrival, stop <-chan struct{}) {
	for d := range deliveries {
		select {
		case <-stop:
		case arrivals <- arrival{Delivery: d, queue: q}:
		}
	}
}

// take acknowledges a delivery and then hands it out: at most once, as
// oslo.messaging does (amqpdriver.py:RpcAMQPListener). One whose acknowledgement
// fails comes again.
func (c *consumer) take(ctx context.Context, a arrival) {
	log := reqctx.Log(ctx).WithField("queue", a.queue.Name)
	if err := a.Ack(false); err != nil {
		log.WithError(err).Warning("message could not be acknowledged and is left to the broker")
		return
	}
	if offset, ok := a.Headers["x-stream-offset"].(int64); ok {
		c.offset = offset + 1
	}
	body, err := decompress(a.Headers, a.Body)
	if err != nil {
		log.WithError(err).Warning("message could not be decompressed and is dropped")
		return
	}
	d := rpc.Delivery{Queue: a.queue.Name, Body: body}
	if ms, err := strconv.ParseInt(a.Expiration, 10, 64); err == nil && ms > 0 && ms < int64(maxExpiration/time.Millisecond) {
		d.Expiration = time.Duration(ms) * time.Millisecond
	}
	c.sub.Handle(d)
}

// maxExpiration is where an expiration is as good as none.
const maxExpiration = 30 * 24 * time.Hour

// leave ends consuming in order: no more deliveries, then the fan-out queue goes.
func (c *consumer) leave(s *session, ch *amqp.Channel) {
	for i := range c.sub.Queues {
		if s.do("cancel consumer", func() error { return ch.Cancel(strconv.Itoa(i+1), false) }) != nil {
			return // the session or channel ended, and with it the consumers
		}
	}
	for _, q := range c.sub.Queues {
		if q.Kind != rpc.QueueFanout || c.topology.isStream(q) {
			continue
		}
		if s.do("delete queue "+q.Name, func() error {
			_, err := ch.QueueDelete(q.Name, false, false, false)
			return err
		}) != nil {
			return // it expires
		}
	}
}
