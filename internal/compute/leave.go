package compute

import (
	"context"
	"errors"
	"sync"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// errLeaving ends a wait because the agent does.
var errLeaving = errors.New("the agent stops")

// departure is the end of the agent, for the waits that it cuts short. The zero value is ready for use.
type departure struct {
	mu    sync.Mutex // guards the fields below
	over  bool
	waits map[*context.CancelCauseFunc]bool
}

// begin ends the waits of now and of later. It may be called repeatedly.
func (d *departure) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for cancel := range d.waits {
		(*cancel)(errLeaving)
	}
	d.waits = nil
}

func (d *departure) begun() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// bound gives a wait a context that ends with the agent.
func (d *departure) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		cancel(errLeaving)
		return ctx, func() {}
	}
	if d.waits == nil {
		d.waits = map[*context.CancelCauseFunc]bool{}
	}
	d.waits[&cancel] = true
	return ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.waits, &cancel)
		cancel(nil)
	}
}

// Leave hands what only waits back to the journal, and to the task states that the next start completes: for a port
// to be wired, an image to come or go, a guest to halt, a turn in a queue. What works goes on; see Drain.
func (m *Manager) Leave() {
	m.departure.begin()
	m.arrivals.leave()
}

// await runs a wait that the agent's end cuts short: its error is errLeaving then. It is for operations
// that the next start takes up, and leaves them where it would find them after a crash.
func (m *Manager) await(ctx context.Context, wait func(ctx context.Context) error) error {
	ctx, done := m.departure.bound(ctx)
	defer done()
	if errors.Is(context.Cause(ctx), errLeaving) {
		return errLeaving
	}
	err := wait(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errLeaving) {
		return errLeaving
	}
	return err
}

// leaving tells that an operation ended because the agent does: it was cut short in a wait, or cancelled as nothing else
// cancels it, for a caller that gives up leaves an exceeded deadline. What was cut off stays as it is, for the next
// start to complete (see settleInstance).
func leaving(ctx context.Context, err error) bool {
	return errors.Is(err, errLeaving) || errors.Is(ctx.Err(), context.Canceled) && !overtakenByDelete(ctx)
}

// handedBack tells that an operation of the journal is the next start's to finish.
func handedBack(ctx context.Context, err error) bool {
	if !errors.Is(err, errLeaving) {
		return false
	}
	reqctx.Log(ctx).Info("operation handed back to the journal: the agent stops, and its next start takes it up")
	return true
}
