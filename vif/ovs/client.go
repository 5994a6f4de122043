package ovs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/compute-agent/compute-agent/internal/keylock"
)

const (
	database = "Open_vSwitch"

	// localSocket is where ovsdb-server listens on every distribution.
	localSocket = "unix:/run/openvswitch/db.sock"

	// callTimeout bounds one transaction that does not wait for vswitchd; a server
	// that takes longer hangs, and a new connection is tried.
	callTimeout = 10 * time.Second

	// connectPatience is how long a server may be away, e.g. while its package is
	// upgraded, before a plug fails.
	connectPatience = 20 * time.Second

	minRetry = 50 * time.Millisecond
	maxRetry = 2 * time.Second

	// conflictAttempts is how often a transaction is worked out anew because somebody
	// else changed the same rows in between.
	conflictAttempts = 10
)

var errConflict = errors.New("somebody else changed the same rows")

// Endpoints returns the servers to try, in order, for the option [os_vif_ovs]
// ovsdb_connection: the local socket comes first, because the default TCP endpoint
// exists only where Neutron's agent has asked for it. An explicit unix socket stands alone.
func Endpoints(configured string) []string {
	switch {
	case configured == "":
		return []string{localSocket}
	case strings.HasPrefix(configured, "unix:"):
		return []string{configured}
	}
	return []string{localSocket, configured}
}

// conn is a connection to ovsdb-server that is made when it is needed and made
// again when it is lost. There is no replica of the database: what is read is
// selected in a transaction and hence current, and what is waited for is waited for
// by the server (RFC 7047 section 5.2.6), so no monitor and no cache can lag or hang.
type conn struct {
	endpoints []string
	dialing   keylock.Locks // one dial at a time; waiters have deadlines

	mu      sync.Mutex    // guards the fields below
	current client.Client // nil: not connected
	reached bool          // there was a connection
}

// session is one connection, good until a call on it fails.
type session struct {
	c client.Client
}

// do runs fn with a connection. fn must read what it depends on and then make it
// so: it runs again from the start if the connection is lost or if its transaction met another one.
func (c *conn) do(ctx context.Context, fn func(ctx context.Context, s session) error) error {
	conflicts := 0
	var lostSince time.Time
	for pause := minRetry; ; pause = min(2*pause, maxRetry) {
		err := c.once(ctx, fn)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errConflict):
			if conflicts++; conflicts == conflictAttempts {
				return err
			}
		case isLost(err): // the library may say so of a context that has ended as well
			if lostSince.IsZero() {
				lostSince = time.Now()
			}
			if time.Since(lostSince) > connectPatience {
				return err
			}
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

func (c *conn) once(ctx context.Context, fn func(ctx context.Context, s session) error) error {
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	if err = fn(ctx, s); isLost(err) {
		c.drop(s)
	}
	return err
}

// session returns the current connection, or makes one.
func (c *conn) session(ctx context.Context) (session, error) {
	unlock, err := c.dialing.Lock(ctx, "")
	if err != nil {
		return session{}, fmt.Errorf("connect to OVSDB: %w", err)
	}
	defer unlock()
	c.mu.Lock()
	current := c.current
	c.mu.Unlock()
	if current != nil {
		return session{current}, nil
	}
	opts := make([]client.Option, 0, len(c.endpoints))
	for _, e := range c.endpoints {
		opts = append(opts, client.WithEndpoint(e))
	}
	tables, err := model.NewClientDBModel(database, map[string]model.Model{})
	if err != nil {
		return session{}, fmt.Errorf("describe OVSDB: %w", err)
	}
	db, err := client.NewOVSDBClient(tables, opts...)
	if err != nil {
		return session{}, fmt.Errorf("set up OVSDB client ([os_vif_ovs] ovsdb_connection): %w", err)
	}
	dialCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := db.Connect(dialCtx); err != nil {
		return session{}, &lostError{fmt.Errorf("connect to OVSDB ([os_vif_ovs] ovsdb_connection): %w", err)}
	}
	c.mu.Lock()
	c.current, c.reached = db, true
	c.mu.Unlock()
	return session{db}, nil
}

// drop gives a failed connection up; the next session makes a new one.
func (c *conn) drop(s session) {
	c.mu.Lock()
	if c.current == s.c {
		c.current = nil
	}
	c.mu.Unlock()
	s.c.Close()
}

func (c *conn) close() {
	c.mu.Lock()
	current := c.current
	c.current = nil
	c.mu.Unlock()
	if current != nil {
		current.Close()
	}
}

// transact runs operations as one transaction. It returns an error for every way
// in which that can fail, also when the server reports it inside an answer.
func (s session) transact(ctx context.Context, ops ...ovsdb.Operation) ([]ovsdb.OperationResult, error) {
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	results, err := s.c.Transact(callCtx, ops...)
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			err = &lostError{err}
		}
		return nil, fmt.Errorf("run OVSDB transaction: %w", err)
	}
	return results, checkResults(results, ops)
}

// checkResults turns failures that an answer carries into errors.
func checkResults(results []ovsdb.OperationResult, ops []ovsdb.Operation) error {
	failures, err := ovsdb.CheckOperationResults(results, ops)
	if err == nil {
		return nil
	}
	errs := []error{err}
	for _, f := range failures {
		errs = append(errs, f)
	}
	err = errors.Join(errs...)
	var constraint *ovsdb.ConstraintViolation
	var integrity *ovsdb.ReferentialIntegrityViolation
	if errors.As(err, &constraint) || errors.As(err, &integrity) || isTimedOut(err) {
		return fmt.Errorf("run OVSDB transaction: %w: %w", errConflict, err)
	}
	return fmt.Errorf("run OVSDB transaction: %w", err)
}

// isTimedOut tells whether a wait inside a transaction ended without what it waited for.
func isTimedOut(err error) bool {
	var timedOut *ovsdb.TimedOut
	return errors.As(err, &timedOut)
}

// lostError marks failures of the connection that carry no well-known cause.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// isLost tells whether an error is the connection's and not the server's answer.
func isLost(err error) bool {
	var lost *lostError
	var network *net.OpError
	return errors.As(err, &lost) || errors.As(err, &network) ||
		errors.Is(err, client.ErrNotConnected) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
