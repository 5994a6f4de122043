package serialconsole

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
)

// ErrNoPort tells that every port of the range is in use.
var ErrNoPort = errors.New("no port of the serial consoles' range is free")

// bucket holds the port of every guest that was given one.
const bucket = "serial_ports"

// admission is how long after Admit a connection is taken: the proxy connects at once.
const admission = time.Minute

// Options are a Server's settings.
type Options struct {
	Address     string // [serial_console] proxyclient_address
	First, Last int    // [serial_console] port_range
	// Open connects with the console of a guest; see driver.ConsoleOpener.
	Open func(ctx context.Context, uuid string) (io.ReadWriteCloser, error)
	// Down tells from Open's errors that the guest does not run.
	Down error
	DB   *state.DB
}

// Server listens for every guest whose console was asked for.
type Server struct {
	o       Options
	started chan struct{} // closed when Run listens
	work    sync.WaitGroup

	mu    sync.Mutex      // guards the fields below
	ctx   context.Context //nolint:containedctx // the life of what Port starts, which is Run's
	ports map[string]*port
}

// port is where one guest's console is served.
type port struct {
	uuid     string
	number   int
	listener net.Listener

	mu       sync.Mutex // guards the fields below
	admitted []time.Time
	current  *session
}

// New returns a server; it listens while Run runs.
func New(o Options) *Server {
	return &Server{o: o, started: make(chan struct{}), ports: map[string]*port{}}
}

// Run listens on the ports that earlier processes gave to guests, and on those that Port gives, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	known, err := state.List[int](s.o.DB, bucket)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ctx = ctx
	for uuid, number := range known {
		if err := s.listen(ctx, uuid, number); err != nil {
			// Somebody else took it meanwhile: the next question for this console gives another.
			reqctx.Log(ctx).WithField("instance", uuid).WithError(err).Warning("serial console is not on its port any more")
		}
	}
	s.mu.Unlock()
	close(s.started)
	<-ctx.Done()
	s.mu.Lock()
	for _, p := range s.ports {
		p.close()
	}
	s.mu.Unlock()
	s.work.Wait()
	return ctx.Err()
}

// Port returns the port of a guest's console and listens there from now on.
func (s *Server) Port(ctx context.Context, uuid string) (int, error) {
	select {
	case <-s.started:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.ports[uuid]; p != nil {
		return p.number, nil
	}
	if s.ctx.Err() != nil {
		return 0, s.ctx.Err()
	}
	taken := map[int]bool{}
	for _, p := range s.ports {
		taken[p.number] = true
	}
	for number := s.o.First; number <= s.o.Last; number++ {
		if taken[number] {
			continue
		}
		err := s.listen(s.ctx, uuid, number) //nolint:contextcheck // it serves for as long as Run runs
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if err := state.Put(s.o.DB, bucket, uuid, number); err != nil {
			s.ports[uuid].close()
			delete(s.ports, uuid)
			return 0, err
		}
		return number, nil
	}
	return 0, ErrNoPort
}

// Admit lets one connection in to a guest's console if number is its port.
func (s *Server) Admit(uuid string, number int) bool {
	s.mu.Lock()
	p := s.ports[uuid]
	s.mu.Unlock()
	if p == nil || p.number != number {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.admitted = slices.DeleteFunc(p.admitted, func(at time.Time) bool { return now.Sub(at) >= admission })
	p.admitted = append(p.admitted, now)
	return true
}

// Forget gives back the port of a guest that is gone; one that has none is forgotten already.
func (s *Server) Forget(uuid string) error {
	s.mu.Lock()
	if p := s.ports[uuid]; p != nil {
		p.close()
		delete(s.ports, uuid)
	}
	s.mu.Unlock()
	return state.Delete(s.o.DB, bucket, uuid)
}

// listen serves a guest on a port. s.mu is held.
func (s *Server) listen(ctx context.Context, uuid string, number int) error {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(s.o.Address, strconv.Itoa(number)))
	if err != nil {
		return fmt.Errorf("listen for serial consoles ([serial_console] proxyclient_address, port_range): %w", err)
	}
	p := &port{uuid: uuid, number: number, listener: l}
	s.ports[uuid] = p
	ctx = reqctx.WithField(ctx, "instance", uuid)
	s.work.Go(func() { s.accept(ctx, p) })
	return nil
}

func (s *Server) accept(ctx context.Context, p *port) {
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		log := reqctx.Log(ctx).WithField("port", p.number)
		if err != nil {
			log.WithError(err).Warning("connection to a serial console not accepted")
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second): // out of descriptors, most likely
			}
			continue
		}
		if !p.admit() {
			log.WithField("peer", conn.RemoteAddr().String()).Warning("connection to a serial console refused: no proxy has asked for it")
			_ = conn.Close()
			continue
		}
		s.work.Go(func() { s.serve(ctx, p, conn) })
	}
}

// admit uses up one admission that is not too old.
func (p *port) admit() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.admitted) > 0 {
		since := time.Since(p.admitted[0])
		p.admitted = p.admitted[1:]
		if since < admission {
			return true
		}
	}
	return false
}

// close ends the port and who is connected.
func (p *port) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.admitted = nil
	if p.current != nil {
		p.current.cancel()
	}
}
