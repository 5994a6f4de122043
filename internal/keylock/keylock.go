// Package keylock serialises work per key, e.g. per instance UUID: work under
// different keys never waits for each other, work under one key runs in the order
// in which it asked.
package keylock

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Locks is a set of locks, one per key, which exist only while held. The zero value is ready for use.
type Locks struct {
	mu    sync.Mutex                 // guards queue
	queue map[string][]chan struct{} // present: held; the channels are those who wait, first come first
}

// Lock waits until the caller holds key or ctx ends; then the error wraps
// ctx.Err(). Callers of one key are served first come, first served. The returned
// unlock may be called more than once; only the first call counts.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	l.mu.Lock()
	if l.queue == nil {
		l.queue = make(map[string][]chan struct{})
	}
	waiting, held := l.queue[key]
	if !held {
		l.queue[key] = nil
		l.mu.Unlock()
		return l.unlocker(key), nil
	}
	turn := make(chan struct{})
	l.queue[key] = append(waiting, turn)
	l.mu.Unlock()

	select {
	case <-turn:
		return l.unlocker(key), nil
	case <-ctx.Done():
		l.leave(key, turn)
		return nil, fmt.Errorf("lock %s: %w", key, ctx.Err())
	}
}

func (l *Locks) unlocker(key string) func() {
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.pass(key)
	})
}

// pass hands key to the first in the queue, or drops the lock. The caller holds mu.
func (l *Locks) pass(key string) {
	waiting := l.queue[key]
	if len(waiting) == 0 {
		delete(l.queue, key)
		return
	}
	l.queue[key] = waiting[1:]
	close(waiting[0])
}

// leave takes a waiter that gave up out of the queue; if its turn had come at the
// same moment, the next one gets it.
func (l *Locks) leave(key string, turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue[key], turn); i >= 0 {
		l.queue[key] = slices.Delete(l.queue[key], i, i+1)
		return
	}
	l.pass(key)
}
