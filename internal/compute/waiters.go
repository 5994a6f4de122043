package compute

import (
	"context"
	"sync"
)

// eventKey names an external event that somebody may wait for
// (nova/compute/manager.py:InstanceEvents).
type eventKey struct{ instanceUUID, name, tag string }

// eventWaiters hands external instance events to those who registered for them.
// An event that nobody expects is not remembered: register before triggering it.
type eventWaiters struct {
	mu      sync.Mutex // guards waiting
	waiting map[eventKey]*expectation
}

// expectation is one registered wait. done carries the event's status; its
// capacity of one lets the event arrive before, or without, the wait.
type expectation struct {
	owner *eventWaiters
	key   eventKey
	done  chan string
}

// expect registers for an event. The caller must end with wait or cancel.
func (w *eventWaiters) expect(instanceUUID, name, tag string) *expectation {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[eventKey]*expectation{}
	}
	e := &expectation{owner: w, key: eventKey{instanceUUID, name, tag}, done: make(chan string, 1)}
	w.waiting[e.key] = e
	return e
}

// deliver wakes the waiter of an event; false: nobody expects it.
func (w *eventWaiters) deliver(instanceUUID, name, tag, status string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.waiting[eventKey{instanceUUID, name, tag}]
	if !ok {
		return false
	}
	delete(w.waiting, e.key)
	e.done <- status
	return true
}

// drop forgets every wait for an instance that goes away; the waiters see the end of their contexts.
func (w *eventWaiters) drop(instanceUUID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.waiting {
		if key.instanceUUID == instanceUUID {
			delete(w.waiting, key)
		}
	}
}

// wait blocks until the event arrives and returns its status, or ctx's error.
func (e *expectation) wait(ctx context.Context) (string, error) {
	defer e.cancel()
	select {
	case status := <-e.done:
		return status, nil
	case <-ctx.Done():
	}
	select {
	case status := <-e.done: // it came in time; only the waiter came late
		return status, nil
	default:
		return "", ctx.Err()
	}
}

// pending tells whether the event is still to come.
func (e *expectation) pending() bool {
	e.owner.mu.Lock()
	defer e.owner.mu.Unlock()
	return e.owner.waiting[e.key] == e
}

// cancel stops expecting; it may be called at any time and repeatedly.
func (e *expectation) cancel() {
	e.owner.mu.Lock()
	defer e.owner.mu.Unlock()
	if e.owner.waiting[e.key] == e {
		delete(e.owner.waiting, e.key)
	}
}
