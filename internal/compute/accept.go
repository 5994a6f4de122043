package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// accept journals an operation and runs it apart from the message that asked for it: with the
// message's request context, but neither its deadline nor its cancellation. run hears what kept
// the entry from being written. It tells whether the operation's outcome, good or bad, is where
// it belongs; if not, the next start of the agent takes the operation up again.
func (m *Manager) accept(ctx context.Context, o *journal.Operation, entry journal.Entry, run func(ctx context.Context, unwritten error) (settled bool)) {
	ctx = reqctx.WithField(reqctx.WithField(context.WithoutCancel(ctx), "instance", o.UUID), "method", o.Method)
	ctx = m.journal.Add(ctx, o)
	unwritten := m.journal.Write(o, entry)
	m.running.run(func() { m.end(ctx, o, run(ctx, unwritten)) })
}

// end takes an operation out of the journal. One that is not settled stays there for the next start.
func (m *Manager) end(ctx context.Context, o *journal.Operation, settled bool) {
	if !settled && m.departure.begun() {
		if err := m.journal.HandOver(o); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("operation in the journal not marked as handed over")
		}
	}
	if err := m.journal.Remove(o, !settled); err != nil {
		reqctx.Log(ctx).WithError(err).Error("operation not removed from the journal")
	}
	if o.PortsChanged() { // nobody else has the operation any more
		m.refreshBuilt(adminContext(context.WithoutCancel(ctx)), o.UUID)
	}
}
