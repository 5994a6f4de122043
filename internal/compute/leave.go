package compute

import (
	"context"
	"errors"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// errLeaving ends a wait because the agent does.
var errLeaving = errors.New("the agent stops")

// departure is the end of the agent, which cuts waits short.
type departure struct {
	begin func()          // may be called repeatedly
	gone  context.Context //nolint:containedctx // not a request: the agent itself
}

func newDeparture() departure {
	gone, begin := context.WithCancel(context.Background())
	return departure{begin: begin, gone: gone}
}

func (d departure) begun() bool { return d.gone.Err() != nil }

// Leave hands what only waits back to the journal, and to the task states that the next start completes: for a port
// to be wired, an image to come or go, a guest to halt, a turn in a queue. What works goes on; see Drain.
func (m *Manager) Leave() {
	m.departure.begin()
	m.arrivals.leave()
}

// await runs a wait that the agent's end cuts short: its error is errLeaving then. It is for operations
// that the next start takes up, and leaves them where it would find them after a crash.
func (m *Manager) await(ctx context.Context, wait func(ctx context.Context) error) error {
	if m.departure.begun() {
		return errLeaving
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.departure.gone, func() { cancel(errLeaving) })() //nolint:contextcheck // the agent ends, not the request
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
