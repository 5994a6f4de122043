package rabbit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/streadway/amqp"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// timing are the bounds of waits on a broker. Tests shorten them.
type timing struct {
	connect time.Duration // TCP, TLS and AMQP handshake of one attempt
	request time.Duration // answer to one AMQP method
	confirm time.Duration // confirm of a publish
	close   time.Duration // orderly close of a connection
}

var defaultTiming = timing{connect: 15 * time.Second, request: 30 * time.Second, confirm: 30 * time.Second, close: 2 * time.Second}

// frameMax is what py-amqp proposes. The library cuts larger bodies; it does not
// allocate a buffer of this size.
const frameMax = 131072

// session is one open connection to a broker. It ends once, by end.
type session struct {
	conn    *amqp.Connection
	socket  *socket
	host    Host
	timing  timing
	done    chan struct{} // closed by end
	blocked atomic.Bool
	flow    chan struct{} // capacity 1: blocked may have changed
	tasks   sync.WaitGroup

	mu    sync.Mutex // guards cause and the close of done
	cause error
}

// open connects and logs in to a host.
func open(life context.Context, o *Options, h Host, tm timing, name string) (*session, error) {
	ctx, cancel := context.WithTimeout(life, tm.connect)
	defer cancel()
	sock, err := dialSocket(ctx, h.Address(), tm.connect, o.Heartbeat)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.Close() })
	defer stop()
	stream, err := sock.secure(ctx, o.TLS, h.Name)
	if err != nil {
		_ = sock.Close()
		return nil, err
	}
	conn, err := amqp.Open(stream, amqp.Config{
		SASL: mechanisms(o.LoginMethod, h), Vhost: o.VirtualHost, FrameSize: frameMax,
		Heartbeat: o.Heartbeat, Locale: "en_US",
		Properties: amqp.Table{"product": "compute-agent", "connection_name": name},
	})
	if err == nil {
		err = sock.establish(conn.Config.Heartbeat)
	}
	if err != nil {
		_ = sock.Close() // ends the library's reader
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	s := &session{
		conn: conn, socket: sock, host: h, timing: tm,
		done: make(chan struct{}), flow: make(chan struct{}, 1),
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	// The library's reader waits for room here; a broker has no reason to send 16 at once.
	blocking := conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	s.tasks.Go(func() { s.watch(life, closed, blocking) })
	if beat := conn.Config.Heartbeat; beat > 0 {
		s.tasks.Go(func() { s.keepAlive(beat / 2) })
	}
	return s, nil
}

// watch drains the library's notifications until it closes them.
func (s *session) watch(ctx context.Context, closed chan *amqp.Error, blocking chan amqp.Blocking) {
	log := reqctx.Log(ctx).WithField("broker", s.host.Address())
	for closed != nil || blocking != nil {
		select {
		case e, ok := <-closed:
			if !ok {
				closed = nil
				s.end(amqp.ErrClosed)
			} else {
				s.end(e)
			}
		case b, ok := <-blocking:
			if !ok {
				blocking = nil
			}
			if s.blocked.Swap(b.Active) == b.Active {
				continue
			}
			switch {
			case b.Active:
				blockedConnections.Inc()
				log.WithField("reason", b.Reason).Warning("broker blocks publishing")
			case ok:
				blockedConnections.Dec()
				log.Info("broker takes publishes again")
			default: // the connection is gone
				blockedConnections.Dec()
			}
			select {
			case s.flow <- struct{}{}:
			default:
			}
		}
	}
}

// keepAlive makes the broker answer when nothing was written for an interval of
// half a heartbeat. The library sends heartbeats only once per whole interval,
// which a broker under load can take for silence.
func (s *session) keepAlive(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-ticker.C:
		}
		if s.blocked.Load() || s.socket.idle() < interval {
			continue
		}
		_ = s.do("probe broker", func() error { // a failure ends the session by itself
			ch, err := s.conn.Channel()
			if err != nil {
				return err
			}
			return ch.Close()
		})
	}
}

// do runs one exchange with the broker under a watchdog: if it takes too long the
// socket is closed, which makes it return. While the broker blocks publishing it
// reads nothing from us, so then the watchdog waits.
func (s *session) do(what string, exchange func() error) error {
	var mu sync.Mutex // orders the assignment of timer before its use in the function
	mu.Lock()
	var timer *time.Timer
	timer = time.AfterFunc(s.timing.request, func() {
		mu.Lock()
		defer mu.Unlock()
		if s.blocked.Load() {
			timer.Reset(s.timing.request)
			return
		}
		s.end(fmt.Errorf("%s: no answer from the broker for %s", what, s.timing.request))
	})
	mu.Unlock()
	defer timer.Stop()
	if err := exchange(); err != nil {
		if cause := s.err(); cause != nil {
			return fmt.Errorf("%s: %w", what, cause)
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// end closes the socket, once, and keeps the first reason.
func (s *session) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = cause
		close(s.done)
	}
	_ = s.socket.Close()
}

// err is why the session ended, nil while it lives.
func (s *session) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// errLeaving ends the sessions of a transport that is closed.
var errLeaving = errors.New("transport closed")

// close says goodbye for a short while, closes the socket and waits, not for
// ever, for the session's goroutines. ctx may have ended: it is only for the log.
func (s *session) close(ctx context.Context) {
	finished := make(chan struct{})
	go func() { // Close waits for a broker that may be gone
		defer close(finished)
		_ = s.conn.Close()
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-finished
		s.tasks.Wait()
	}()
	patience := time.NewTimer(s.timing.close)
	defer patience.Stop()
	select {
	case <-finished:
	case <-s.done:
	case <-patience.C:
	}
	s.end(errLeaving)
	patience.Reset(s.timing.close)
	select { // without a socket the library lets go of everything; a fault in it must not keep us from a new one
	case <-ended:
	case <-patience.C:
		reqctx.Log(ctx).WithField("broker", s.host.Address()).Error("amqp library does not end a closed connection, its goroutines are left behind")
	}
}

// errBlocked explains a publish that was never taken.
var errBlocked = errors.New("the broker blocks publishing")

// trouble is what keeps a publish from being done, nil if nothing is known.
func (s *session) trouble() error {
	if err := s.err(); err != nil {
		return err
	}
	if s.blocked.Load() {
		return errBlocked
	}
	return nil
}
