package storage

import (
	"context"
	"fmt"
	"slices"
)

// Pool is a place for root disks: one directory of the host, with the back ends that have root disks there.
type Pool struct {
	Normal Backend   // makes new root disks
	Nested Backend   // makes those of guests that mount overlays themselves (Root.Nested)
	Others []Backend // have root disks, and make no new ones
}

// Pooled is a back end with pools of different names.
type Pooled interface {
	Backend
	// PoolUsage is Usage of one pool; "" is the default one. ErrNoPool: there is none of that name.
	PoolUsage(ctx context.Context, name string) (Usage, error)
}

// Pools is a back end with a pool for the root disks that name none, and others by name. A new root disk is made in
// the pool that it names, or not at all (ErrNoPool). One that exists is found wherever it is: its directory, which appears
// by one rename, is the record of where. It is the caller's to delete one before another is made in another pool.
func Pools(main Pool, extra map[string]Pool) Pooled {
	c := &choice{pools: map[string]Pool{"": main}}
	c.add(main)
	for name, p := range extra {
		c.pools[name] = p
		c.add(p)
	}
	return c
}

func (c *choice) add(p Pool) {
	for _, b := range append([]Backend{p.Normal, p.Nested}, p.Others...) {
		if !slices.Contains(c.all, b) {
			c.all = append(c.all, b)
		}
	}
}

// PoolUsage implements Pooled.
func (c *choice) PoolUsage(ctx context.Context, name string) (Usage, error) {
	p, ok := c.pools[name]
	if !ok {
		return Usage{}, fmt.Errorf("%w: %q", ErrNoPool, name)
	}
	return p.Normal.Usage(ctx)
}
