package rabbit

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/streadway/amqp"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// topology declares exchanges and queues with the flags and arguments of
// oslo.messaging (impl_rabbit.py:_get_queue_arguments, Consumer.declare, amqpdriver.py:listen).
type topology struct {
	options *Options

	mu      sync.Mutex // guards relaxed
	relaxed map[string]bool
}

// errAgain asks for the same declaration at once on a new channel: what stood in
// its way was repaired.
var errAgain = errors.New("declare again")

// durable tells the flag for long-lived objects.
func (o *Options) durable() bool { return o.Durable || o.QuorumQueue }

// exchangeFlags gives durable and auto-delete of an exchange.
func (t *topology) exchangeFlags(e rpc.Exchange) (durable, autoDelete bool) {
	o := t.options
	if e.Kind == rpc.ExchangeFanout {
		durable, autoDelete = o.TransientQuorumQueue || o.StreamFanout, true
	} else {
		durable, autoDelete = o.durable(), o.AutoDelete
	}
	return durable && !t.isRelaxed(e.Name), autoDelete
}

// queueFlags gives durable and auto-delete of a queue.
func (t *topology) queueFlags(q rpc.Queue) (durable, autoDelete bool) {
	o := t.options
	switch q.Kind {
	case rpc.QueueFanout:
		durable = o.TransientQuorumQueue || o.StreamFanout
	case rpc.QueueReply:
		durable = o.TransientQuorumQueue
	case rpc.QueueTopic:
		durable, autoDelete = o.durable(), o.AutoDelete
	}
	return durable && !t.isRelaxed(q.Name), autoDelete
}

// isStream tells whether q is the shared stream of a fan-out.
func (t *topology) isStream(q rpc.Queue) bool {
	return q.Kind == rpc.QueueFanout && t.options.StreamFanout
}

// queueName is the name on the broker: a stream fan-out is one queue for all servers.
func (t *topology) queueName(q rpc.Queue) string {
	if t.isStream(q) {
		return q.Exchange.Name
	}
	return q.Name
}

// queueArguments gives the arguments of a queue.
func (t *topology) queueArguments(q rpc.Queue) amqp.Table {
	o := t.options
	transient := q.Kind != rpc.QueueTopic
	ttl := int64(o.TransientTTL / time.Second)
	if t.isStream(q) {
		args := amqp.Table{"x-queue-type": "stream"}
		if ttl > 0 {
			args["x-max-age"] = strconv.FormatInt(ttl, 10) + "s"
		}
		return args
	}
	args := amqp.Table{}
	if o.HAQueues {
		args["x-ha-policy"] = "all"
	}
	if quorum := (transient && o.TransientQuorumQueue) || (!transient && o.QuorumQueue); quorum {
		args["x-queue-type"] = "quorum"
		for name, limit := range map[string]int{
			"x-delivery-limit":       o.QuorumDeliveryLimit,
			"x-max-in-memory-length": o.QuorumMaxMemoryLength,
			"x-max-in-memory-bytes":  o.QuorumMaxMemoryBytes,
		} {
			if limit > 0 {
				args[name] = int64(limit)
			}
		}
	}
	if transient && ttl > 0 {
		args["x-expires"] = ttl * 1000
	}
	return args
}

// declareExchange declares an exchange other than the default one.
func (t *topology) declareExchange(ctx context.Context, s *session, ch *amqp.Channel, e rpc.Exchange) error {
	if e.Kind == rpc.ExchangeDefault {
		return nil
	}
	kind := amqp.ExchangeTopic
	if e.Kind == rpc.ExchangeFanout {
		kind = amqp.ExchangeFanout
	}
	durable, autoDelete := t.exchangeFlags(e)
	err := s.do("declare exchange "+e.Name, func() error {
		return ch.ExchangeDeclare(e.Name, kind, durable, autoDelete, false, false, nil)
	})
	return t.repair(ctx, err, durable, e.Name)
}

// declareQueue declares exchange, queue and binding.
func (t *topology) declareQueue(ctx context.Context, s *session, ch *amqp.Channel, q rpc.Queue) error {
	if err := t.declareExchange(ctx, s, ch, q.Exchange); err != nil {
		if errors.Is(err, errAgain) { // queue and exchange are redeclared together
			t.relax(q.Name)
		}
		return err
	}
	name := t.queueName(q)
	durable, autoDelete := t.queueFlags(q)
	err := s.do("declare queue "+name, func() error {
		_, err := ch.QueueDeclare(name, durable, autoDelete, false, false, t.queueArguments(q))
		return err
	})
	if hasCode(err, amqp.NotFound) {
		return t.removeStuck(ctx, s, name, err)
	}
	if err := t.repair(ctx, err, durable, name, q.Exchange.Name); err != nil {
		return err
	}
	if q.Exchange.Kind == rpc.ExchangeDefault {
		return nil
	}
	return s.do("bind queue "+name, func() error {
		return ch.QueueBind(name, q.RoutingKey, q.Exchange.Name, false, nil)
	})
}

// repair turns a refusal because of durability into errAgain: the object was
// made by somebody with other options, and is then used as it is.
func (t *topology) repair(ctx context.Context, err error, durable bool, names ...string) error {
	var refused *amqp.Error
	if !durable || !errors.As(err, &refused) || refused.Code != amqp.PreconditionFailed ||
		!strings.Contains(refused.Reason, "inequivalent arg 'durable'") {
		return err
	}
	reqctx.Log(ctx).WithError(err).
		Warning("object exists and is not durable: amqp_durable_queues or a quorum option differs from the control plane's")
	for _, name := range names {
		t.relax(name)
	}
	return errAgain
}

// removeStuck deletes a queue whose declaration says that it does not exist: its
// node is down (impl_rabbit.py:Consumer.declare).
func (t *topology) removeStuck(ctx context.Context, s *session, name string, cause error) error {
	err := s.do("delete queue "+name, func() error {
		ch, err := s.conn.Channel() // the refusal has closed the other one
		if err != nil {
			return err
		}
		if _, err = ch.QueueDelete(name, false, false, false); err != nil {
			return err
		}
		return ch.Close()
	})
	if err != nil {
		return errors.Join(cause, err)
	}
	reqctx.Log(ctx).WithField("queue", name).Warning("queue was stuck on a lost broker node and is declared anew")
	return errAgain
}

func (t *topology) relax(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.relaxed == nil {
		t.relaxed = map[string]bool{}
	}
	t.relaxed[name] = true
}

func (t *topology) isRelaxed(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.relaxed[name]
}

// hasCode tells whether the broker refused with this code.
func hasCode(err error, code int) bool {
	var refused *amqp.Error
	return errors.As(err, &refused) && refused.Code == code
}
