package compute

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/compute-agent/compute-agent/driver"
)

// arrivals are the root disks that are on their way here, by instance UUID.
type arrivals struct {
	mu   sync.Mutex // guards open
	open map[string]*arrival
}

// arrival is one of them: its first passes are done, and the last comes when the guest has stopped.
type arrival struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the last pass has ended
	left   atomic.Bool   // the agent leaves: its next start waits again
	err    error         // of it; valid when done is closed
}

func (a *arrivals) set(uuid string, one *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		a.open = map[string]*arrival{}
	}
	if one == nil {
		delete(a.open, uuid)
		return
	}
	a.open[uuid] = one
}

func (a *arrivals) of(uuid string) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open[uuid]
}

// leave ends the waits for root disks, which the next start of the agent takes up: nothing is lost but
// the connection.
func (a *arrivals) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range a.open {
		one.left.Store(true)
		one.cancel(errLeaving)
	}
}

// waits tells whether the rest of a root disk is waited for.
func (a *arrivals) waits(uuid string) bool {
	one := a.of(uuid)
	if one == nil {
		return false
	}
	select {
	case <-one.done:
		return false
	default:
		return true
	}
}

// removeArrival removes a root disk that did not come. Whoever cancelled it removes it itself.
func (m *Manager) removeArrival(ctx context.Context, uuid string, a *arrival) error {
	if m.arrivals.of(uuid) != a {
		return nil
	}
	m.arrivals.set(uuid, nil)
	if rec, ok, err := m.record(uuid); err != nil || !ok || rec.Incoming == nil {
		return err
	}
	return m.removeFromHost(ctx, uuid)
}

// abandonIncoming removes what has come of a root disk.
func (m *Manager) abandonIncoming(ctx context.Context, uuid, migration string, cause error) error {
	if a := m.arrivals.of(uuid); a != nil {
		m.arrivals.set(uuid, nil)
		a.cancel(fmt.Errorf("the destination gave up: %w", orUnknown(cause)))
		select {
		case <-a.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	rec, ok, err := m.record(uuid)
	if err != nil || !ok || rec.Incoming == nil || rec.Incoming.Migration != migration {
		return err
	}
	return m.removeFromHost(ctx, uuid)
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("the move is not wanted any more")
	}
	return err
}

// received waits for the end of the last pass, which the source has seen before it sent the instance.
func (m *Manager) received(ctx context.Context, uuid string) (record, error) {
	if a := m.arrivals.of(uuid); a != nil {
		select {
		case <-a.done:
		case <-ctx.Done():
			return record{}, context.Cause(ctx)
		}
		m.arrivals.set(uuid, nil)
		if a.err != nil {
			return record{}, a.err
		}
	}
	rec, ok, err := m.record(uuid)
	if err == nil && (!ok || rec.Incoming != nil && !rec.Incoming.Received) {
		err = fmt.Errorf("the root disk is not on this host: %w", driver.ErrNotFound)
	}
	return rec, err
}
