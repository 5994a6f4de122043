package rabbit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// link keeps one connection for one purpose: run dials, and dials again after
// every loss, until its context ends.
type link struct {
	purpose string // "publish" or "consume"; log field and metrics label
	options *Options
	timing  timing
	hosts   []Host // in the order of this link's attempts
	name    string

	mu       sync.Mutex // guards the fields below
	current  *session
	failures int           // failed attempts so far
	lastErr  error         // of the last attempt
	changed  chan struct{} // closed and replaced when a field above changes
}

func newLink(purpose string, o *Options, tm timing, name string) *link {
	hosts := slices.Clone(o.Hosts)
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] }) //nolint:gosec // no secret
	return &link{purpose: purpose, options: o, timing: tm, hosts: hosts, name: name, changed: make(chan struct{})}
}

// session waits for an open connection. With failFast it returns the error of an
// attempt that fails meanwhile. Something must run the link.
func (l *link) session(ctx context.Context, failFast bool) (*session, error) {
	l.mu.Lock()
	failures := l.failures
	for {
		if s := l.current; s != nil && s.err() == nil {
			l.mu.Unlock()
			return s, nil
		}
		if failFast && l.failures > failures {
			err := l.lastErr
			l.mu.Unlock()
			return nil, err
		}
		changed, lastErr := l.changed, l.lastErr
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, waitError(ctx, lastErr)
		}
		l.mu.Lock()
	}
}

// run dials, waits for the end of the session and begins again.
func (l *link) run(ctx context.Context) {
	log := reqctx.Log(ctx).WithField("purpose", l.purpose)
	next := 0
	for lost := false; ; lost = true {
		s := l.connect(ctx, &next, lost)
		if s == nil {
			return
		}
		log.WithField("broker", s.host.Address()).Info("connected to the broker")
		connected.WithLabelValues(l.purpose).Inc()
		l.update(func() { l.current, l.lastErr = s, nil })
		select {
		case <-s.done:
			log.WithField("broker", s.host.Address()).WithError(s.err()).Warning("connection to the broker lost")
		case <-ctx.Done():
		}
		connected.WithLabelValues(l.purpose).Dec()
		l.update(func() { l.current, l.lastErr = nil, s.err() })
		s.close(ctx)
		next++ // the other hosts first
	}
}

// connect tries the hosts in turn until one takes us; nil if ctx ended before. The
// back-off grows when a round of all hosts has failed, and each attempt but the
// first of a link's life is delayed (impl_rabbit.py:Connection.ensure_connection).
func (l *link) connect(ctx context.Context, next *int, delay bool) *session {
	wait := newBackoff(l.options)
	for tries := 1; ; tries++ {
		if delay && !sleep(ctx, l.reconnectDelay()) {
			return nil
		}
		delay = true
		h := l.host(*next)
		s, err := open(ctx, l.options, h, l.timing, l.name)
		if err == nil {
			connects.WithLabelValues(l.purpose, "ok").Inc()
			return s
		}
		if ctx.Err() != nil {
			return nil
		}
		connects.WithLabelValues(l.purpose, "error").Inc()
		reqctx.Log(ctx).WithError(err).WithField("purpose", l.purpose).WithField("broker", h.Address()).
			Warning("broker cannot be reached")
		l.update(func() { l.failures++; l.lastErr = err })
		*next++
		if tries%len(l.hosts) == 0 && !sleep(ctx, wait.next()) {
			return nil
		}
	}
}

// host picks the host of an attempt by the fail-over strategy.
func (l *link) host(attempt int) Host {
	if l.options.FailoverStrategy == "shuffle" && attempt > 0 {
		return l.hosts[rand.IntN(len(l.hosts))] //nolint:gosec // no secret
	}
	return l.hosts[attempt%len(l.hosts)]
}

// reconnectDelay keeps all agents of a cloud from coming back in one instant.
func (l *link) reconnectDelay() time.Duration {
	d := l.options.ReconnectDelay
	if splay := l.options.ReconnectSplay; splay > 0 {
		d += time.Duration(rand.Int64N(int64(splay))) //nolint:gosec // no secret
	}
	return d
}

func (l *link) update(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
}

// backoff gives the waits between attempts: 1, 3, 5 … 30 s by default.
type backoff struct{ wait, step, ceiling, first time.Duration }

func newBackoff(o *Options) *backoff {
	return &backoff{wait: o.RetryInterval, step: o.RetryBackoff, ceiling: o.IntervalMax, first: o.RetryInterval}
}

func (b *backoff) next() time.Duration {
	d := min(b.wait, b.ceiling)
	b.wait = min(b.wait+b.step, b.ceiling)
	return d
}

func (b *backoff) reset() { b.wait = b.first }

// waitError is the end of a wait for the broker: why ctx ended, and what the broker last said.
func waitError(ctx context.Context, last error) error {
	if last == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w (%w)", context.Cause(ctx), last)
}

// sleep waits; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// alive tells whether there is an open connection now.
func (l *link) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current != nil && l.current.err() == nil
}
