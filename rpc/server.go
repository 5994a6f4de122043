package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const (
	// defaultWorkers is executor_thread_pool_size.
	defaultWorkers = 64
	// defaultShutdown is graceful_shutdown_timeout of oslo.service.
	defaultShutdown = 60 * time.Second
	// abandonGrace is how long handlers get after their contexts ended.
	abandonGrace = 5 * time.Second
)

// ServerOptions are the settings of a Server.
type ServerOptions struct {
	Exchange string // control_exchange; "" is "nova"
	Topic    string // "compute"
	Host     string // [DEFAULT] host, byte for byte
	Workers  int    // handlers at the same time; 0 is 64
	// ShutdownTimeout is how long Run waits for handlers after its context ended; 0 is 60 s.
	ShutdownTimeout time.Duration
}

// Server serves the methods of endpoints on the queues "topic", "topic.host" and
// the topic's fan-out (oslo_messaging/rpc/server.py). A second topic is a second
// Server on the same Transport.
type Server struct {
	transport Transport
	options   ServerOptions
	endpoints []Endpoint
	ready     chan struct{}
	readyOnce sync.Once
	log       quiet
	recent    recent // only touched by the subscription's handler
	dead      deadQueues

	mu      sync.Mutex // guards the fields below
	backlog []*request // accepted, in order of arrival, not yet started
	workers int        // running worker goroutines
	running map[*request]struct{}

	tasks sync.WaitGroup // workers and replies that are sent again
}

// NewServer returns a server of the endpoints, which are asked in their order.
func NewServer(t Transport, o ServerOptions, endpoints ...Endpoint) *Server {
	if o.Exchange == "" {
		o.Exchange = defaultExchange
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.ShutdownTimeout <= 0 {
		o.ShutdownTimeout = defaultShutdown
	}
	return &Server{
		transport: t, options: o, endpoints: endpoints,
		ready: make(chan struct{}), running: map[*request]struct{}{},
	}
}

// Ready is closed when all three queues are consumed for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends. Then it stops consuming (messages that were not
// taken stay in their queues), deletes the fan-out queue, lets the accepted
// requests finish within ShutdownTimeout and sends their replies. Run may be
// called once. The error tells that consuming is impossible or that handlers were
// abandoned.
func (s *Server) Run(ctx context.Context) error {
	// Requests outlive ctx by the shutdown time: the agent leaves, the work does not.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	err := s.transport.Consume(ctx, Subscription{
		Queues: s.queues(),
		Handle: func(d Delivery) { s.accept(work, d) },
		Ready:  func() { s.readyOnce.Do(func() { close(s.ready) }) },
	})
	if err != nil {
		err = fmt.Errorf("serve topic %s: %w", s.options.Topic, err)
	}
	return errors.Join(err, s.drain(work, cancel))
}

// queues are the three queues of a server (amqpdriver.py:AMQPDriverBase.listen).
func (s *Server) queues() []Queue {
	topic, exchange := s.options.Topic, Exchange{Name: s.options.Exchange, Kind: ExchangeTopic}
	direct := topic + "." + s.options.Host
	return []Queue{
		{Name: topic, Kind: QueueTopic, Exchange: exchange, RoutingKey: topic},
		{Name: direct, Kind: QueueTopic, Exchange: exchange, RoutingKey: direct},
		{Name: topic + "_fanout_" + newID(), Kind: QueueFanout, Exchange: fanoutExchange(topic), RoutingKey: topic},
	}
}

// drain waits for the accepted requests, and cancels their context when their time is over.
func (s *Server) drain(work context.Context, cancel context.CancelFunc) error {
	done := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(done)
	}()
	for _, patience := range []time.Duration{s.options.ShutdownTimeout, abandonGrace} {
		timer := time.NewTimer(patience)
		select {
		case <-done:
			timer.Stop()
			return nil
		case <-timer.C:
		}
		s.discardBacklog(work)
		cancel()
	}
	return fmt.Errorf("stop topic %s: handlers still run: %v", s.options.Topic, s.runningMethods())
}

// discardBacklog drops what was accepted but will not be started any more.
func (s *Server) discardBacklog(ctx context.Context) {
	s.mu.Lock()
	lost := s.backlog
	s.backlog = nil
	s.mu.Unlock()
	waitingRequests.Sub(float64(len(lost)))
	for _, r := range lost {
		reqctx.Log(reqctx.With(ctx, reqctx.FromMap(r.context))).WithField("method", r.method).Error("request was accepted but not started before the shutdown")
	}
}

func (s *Server) runningMethods() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	methods := make([]string, 0, len(s.running))
	for r := range s.running {
		methods = append(methods, r.method)
	}
	return methods
}

// accept takes one delivery in; it never blocks. Decoding here keeps a malformed
// message from ever taking a worker.
func (s *Server) accept(ctx context.Context, d Delivery) {
	r, err := decodeRequest(d.Body)
	if err != nil {
		countMalformed(ctx, &s.log, err, d)
		if r.msgID == "" || r.replyTo == "" {
			return
		}
		r.refusal = builtin("ValueError", err.Error())
	}
	if s.recent.seen(r.uniqueID) {
		refusedMessages.WithLabelValues("duplicate").Inc()
		reqctx.Log(ctx).WithField("method", r.method).WithField("queue", d.Queue).Warning("repeated message dropped")
		return
	}
	r.expiration = d.Expiration
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backlog = append(s.backlog, r)
	waitingRequests.Inc()
	if s.workers < s.options.Workers {
		s.workers++
		s.tasks.Go(func() { s.work(ctx) })
	}
}

// work runs requests in their order until none waits.
func (s *Server) work(ctx context.Context) {
	for {
		s.mu.Lock()
		if len(s.backlog) == 0 {
			s.workers--
			s.backlog = nil // let go of what a burst had grown
			s.mu.Unlock()
			return
		}
		r := s.backlog[0]
		s.backlog[0] = nil
		s.backlog = s.backlog[1:]
		s.running[r] = struct{}{}
		s.mu.Unlock()
		waitingRequests.Dec()
		s.serve(ctx, r)
		s.mu.Lock()
		delete(s.running, r)
		s.mu.Unlock()
	}
}

// countMalformed counts a message that could not be read and logs one of each
// kind per minute, without its content.
func countMalformed(ctx context.Context, log *quiet, err error, d Delivery) {
	kind := "message"
	if m, ok := errors.AsType[*MalformedError](err); ok {
		kind = m.Kind
	}
	malformedMessages.WithLabelValues(kind).Inc()
	if suppressed, ok := log.allow(kind); ok {
		reqctx.Log(ctx).WithError(err).WithField("queue", d.Queue).WithField("bytes", len(d.Body)).
			WithField("suppressed", suppressed).Warning("malformed message dropped")
	}
}
