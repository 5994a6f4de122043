package compute

import (
	"context"
	"sync"
)

// background counts the operations that outlive their message. The zero value is ready for use.
type background struct {
	mu   sync.Mutex // guards the fields below
	n    int
	idle chan struct{} // closed when n comes to 0; made when it leaves it
}

// run starts an operation.
func (b *background) run(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n == 0 {
		b.idle = make(chan struct{})
	}
	b.n++
	go func() {
		defer b.end()
		fn()
	}()
}

func (b *background) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n--
	if b.n == 0 {
		close(b.idle)
	}
}

// wait blocks until no operation runs, or ctx ends.
func (b *background) wait(ctx context.Context) error {
	b.mu.Lock()
	idle := b.idle
	running := b.n > 0
	b.mu.Unlock()
	if !running {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
