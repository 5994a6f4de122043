package transfer

import (
	"context"
	"net"
	"sync"
	"time"
)

// limiter shares a rate among the connections of a host. The zero rate is no limit.
type limiter struct {
	rate int64 // bytes a second

	mu   sync.Mutex // guards next
	next time.Time  // when what was let through so far is paid for
}

// burst is how far a connection may run ahead of the rate.
const burst = 50 * time.Millisecond

// wait blocks until n bytes may go.
func (l *limiter) wait(ctx context.Context, n int) error {
	if l.rate <= 0 {
		return nil
	}
	cost := time.Duration(float64(n) / float64(l.rate) * float64(time.Second))
	l.mu.Lock()
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	l.next = l.next.Add(cost)
	delay := l.next.Sub(now) - burst
	l.mu.Unlock()
	if delay <= 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// conn is a connection whose reads and writes each have a deadline: a peer that is gone
// without a word must not hold a migration for ever. Writes keep to the limiter.
type conn struct {
	net.Conn
	ctx     context.Context //nolint:containedctx // io.Writer has no room for it; a conn lives as long as one call
	limit   *limiter
	silence time.Duration
}

// Read implements io.Reader.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements io.Writer.
func (c *conn) Write(p []byte) (int, error) {
	if c.limit != nil {
		if err := c.limit.wait(c.ctx, len(p)); err != nil {
			return 0, err
		}
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
