package resource

import (
	"context"
	"sync"
)

// turn is a lock that can be waited for with a context, for work that takes as long as
// other services do. The zero value is free.
type turn struct {
	once sync.Once
	slot chan struct{} // capacity one: who has put its token in holds the turn
}

// enter waits for the turn. leave passes it on.
func (t *turn) enter(ctx context.Context) (leave func(), err error) {
	t.once.Do(func() { t.slot = make(chan struct{}, 1) })
	select {
	case t.slot <- struct{}{}:
		return func() { <-t.slot }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
