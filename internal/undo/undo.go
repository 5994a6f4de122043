// Package undo remembers how to take back what an operation has acquired so far.
// An operation pushes one step right after each acquisition, defers Rewind, and
// calls Release once it has succeeded.
package undo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Timeout bounds a whole Rewind: long enough for a slow control plane to answer
// a few calls, short enough that a failed build is reported while the caller still waits.
const Timeout = 30 * time.Second

// Stack is a list of undo steps. The zero value is ready for use; its methods may
// be called from several goroutines.
type Stack struct {
	mu    sync.Mutex // guards steps
	steps []step
}

type step struct {
	name string
	fn   func(ctx context.Context) error
}

// Push adds a step; name says what it takes back, in the form "verb object", and
// prefixes the step's error.
func (s *Stack) Push(name string, fn func(ctx context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name: name, fn: fn})
}

// Release forgets all steps: the operation succeeded and keeps what it acquired.
func (s *Stack) Release() {
	s.take()
}

// Rewind runs the steps in reverse order and forgets them, so that a second call,
// or a call after Release, does nothing. The steps run on a context that keeps
// ctx's values but neither its cancellation nor its deadline, and that ends after
// Timeout; a step that fails does not stop the ones below it. The result joins
// the errors of all steps.
func (s *Stack) Rewind(ctx context.Context) error {
	steps := s.take()
	if len(steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	var errs []error
	for _, one := range slices.Backward(steps) {
		if err := one.fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", one.name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Stack) take() []step {
	s.mu.Lock()
	defer s.mu.Unlock()
	steps := s.steps
	s.steps = nil
	return steps
}
