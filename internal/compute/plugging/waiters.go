package plugging

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// Key names an external event that somebody may wait for
// (nova/compute/manager.py:InstanceEvents).
type Key struct{ InstanceUUID, Name, Tag string }

// Waiters hands external instance events to those who registered for them.
// An event that nobody expects is not remembered: register before triggering it.
type Waiters struct {
	mu      sync.Mutex // guards waiting
	waiting map[Key]*Expectation
}

// Expectation is one registered wait. done carries the event's status; its
// capacity of one lets the event arrive before, or without, the wait.
type Expectation struct {
	owner *Waiters
	key   Key
	done  chan string
}

// Expect registers for an event. The caller must end with Wait or Cancel.
func (w *Waiters) Expect(instanceUUID, name, tag string) *Expectation {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[Key]*Expectation{}
	}
	e := &Expectation{owner: w, key: Key{instanceUUID, name, tag}, done: make(chan string, 1)}
	w.waiting[e.key] = e
	return e
}

// Deliver wakes the waiter of an event; false: nobody expects it.
func (w *Waiters) Deliver(instanceUUID, name, tag, status string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.waiting[Key{instanceUUID, name, tag}]
	if !ok {
		return false
	}
	delete(w.waiting, e.key)
	e.done <- status
	return true
}

// Drop forgets every wait for an instance that goes away; the waiters see the end of their contexts.
func (w *Waiters) Drop(instanceUUID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.waiting {
		if key.InstanceUUID == instanceUUID {
			delete(w.waiting, key)
		}
	}
}

// Keys are the events that somebody waits for.
func (w *Waiters) Keys() []Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.waiting))
}

// Wait blocks until the event arrives and returns its status, or ctx's error.
func (e *Expectation) Wait(ctx context.Context) (string, error) {
	defer e.Cancel()
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
func (e *Expectation) pending() bool {
	e.owner.mu.Lock()
	defer e.owner.mu.Unlock()
	return e.owner.waiting[e.key] == e
}

// Cancel stops expecting; it may be called at any time and repeatedly.
func (e *Expectation) Cancel() {
	e.owner.mu.Lock()
	defer e.owner.mu.Unlock()
	if e.owner.waiting[e.key] == e {
		delete(e.owner.waiting, e.key)
	}
}
