package serialconsole

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const (
	// chunk is how much is read at once, and backlog how many chunks wait for a slow client: 1 MiB, the
	// output of a boot many times over. A guest's output must not wait for a client, so one that
	// falls behind by more is cut off.
	chunk   = 4 << 10
	backlog = 256
	// openFor is how long a guest is waited for that does not run: a reboot by nova takes a moment.
	openFor  = 10 * time.Second
	openPoll = 100 * time.Millisecond
	// lastWords is how long a client may take to read what a guest wrote before it ended.
	lastWords = time.Second
)

var errSlow = errors.New("the client does not read what the guest writes")

// session is one connection to a console.
type session struct {
	conn   net.Conn
	cancel context.CancelFunc
	done   chan struct{}
}

// serve connects a client with the guest until either leaves or the next client comes.
func (s *Server) serve(ctx context.Context, p *port, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now := &session{conn: conn, cancel: cancel, done: make(chan struct{})}
	defer close(now.done)
	defer conn.Close() //nolint:errcheck // whatever was not sent has nobody to read it
	log := reqctx.Log(ctx).WithField("port", p.number)

	p.mu.Lock()
	before := p.current
	p.current = now
	p.mu.Unlock()
	if before != nil {
		before.cancel()
		<-before.done
	}
	log.Info("serial console connected")
	err := s.bridge(ctx, p.uuid, conn)
	p.mu.Lock()
	if p.current == now {
		p.current = nil
	}
	p.mu.Unlock()
	log.WithField("reason", reason(ctx, err)).Info("serial console disconnected")
}

func reason(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return "taken over, or the guest or the agent has gone"
	}
	if err == nil {
		return "the client left"
	}
	return err.Error()
}

// bridge copies in both directions. A guest that is restarted has a new console, and the client stays.
func (s *Server) bridge(ctx context.Context, uuid string, conn net.Conn) error {
	for {
		console, err := s.open(ctx, uuid)
		if err != nil {
			if ctx.Err() == nil {
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = io.WriteString(conn, "\r\nThe console is not available.\r\n")
			}
			return err
		}
		ended, err := relay(ctx, console, conn)
		if !ended {
			return err
		}
	}
}

// open connects with the console, waiting for a guest that is just restarted.
func (s *Server) open(ctx context.Context, uuid string) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, openFor)
	defer cancel()
	for {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		console, err := s.o.Open(ctx, uuid)
		if err == nil || !errors.Is(err, s.o.Down) {
			return console, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(openPoll):
		}
	}
}

// errEnded: the console has ended, with its guest or with this run of it.
var errEnded = errors.New("the guest's console ended")

// relay copies between a console and a client until one of them ends; ended tells that the console did.
func relay(ctx context.Context, console io.ReadWriteCloser, conn net.Conn) (ended bool, err error) {
	g, ctx := errgroup.WithContext(ctx)
	output := make(chan []byte, backlog)
	written := make(chan struct{})
	g.Go(func() error {
		err := readConsole(console, output)
		close(output)
		select { // its last words
		case <-written:
		case <-ctx.Done():
		case <-time.After(lastWords):
		}
		return err
	})
	g.Go(func() error {
		defer close(written)
		for b := range output {
			if _, err := conn.Write(b); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error { return readClient(conn, console) })
	g.Go(func() error { // whoever ends first ends the others
		<-ctx.Done()
		_ = conn.SetDeadline(time.Now())
		_ = console.Close()
		return nil
	})
	err = g.Wait()
	switch {
	case errors.Is(err, errEnded):
		return true, conn.SetDeadline(time.Time{})
	case errors.Is(err, io.EOF):
		return false, nil
	}
	return false, err
}

// readConsole takes a guest's output as fast as it comes.
func readConsole(console io.Reader, output chan<- []byte) error {
	for {
		b := make([]byte, chunk)
		n, err := console.Read(b)
		if n > 0 {
			select {
			case output <- b[:n]:
			default:
				return errSlow
			}
		}
		if err != nil {
			return errEnded
		}
	}
}

// readClient types what the client sends.
func readClient(conn io.Reader, console io.Writer) error {
	b := make([]byte, chunk)
	for {
		n, err := conn.Read(b)
		if n > 0 {
			if _, err := console.Write(b[:n]); err != nil {
				return errEnded
			}
		}
		if err != nil {
			return err
		}
	}
}
