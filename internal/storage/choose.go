package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Choose is a back end of several. New root disks come from normal, and those of guests that mount overlays
// themselves (Root.Nested) from nested. Root disks that exist stay where they are, also in others: back ends that
// an operator has chosen before.
func Choose(normal, nested Backend, others ...Backend) Backend {
	return Pools(Pool{Normal: normal, Nested: nested, Others: others}, nil)
}

type choice struct {
	pools map[string]Pool // by name; "" is the default one
	all   []Backend
}

// of is the back end of a new root disk.
func (c *choice) of(r Root) (Backend, error) {
	p, ok := c.pools[r.Pool]
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: %q", ErrNoPool, r.Pool)
	case r.Nested:
		return p.Nested, nil
	}
	return p.Normal, nil
}

// any runs do with one back end after the other until one knows the root disk.
func (c *choice) any(do func(b Backend) error) error {
	err := ErrNotFound
	for _, b := range c.all {
		if err = do(b); !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return err
}

// each runs do with all.
func (c *choice) each(do func(b Backend) error) error {
	errs := make([]error, 0, len(c.all))
	for _, b := range c.all {
		errs = append(errs, do(b))
	}
	return errors.Join(errs...)
}

// Name implements Backend.
func (c *choice) Name() string { return c.pools[""].Normal.Name() }

// Create implements Backend.
func (c *choice) Create(ctx context.Context, r Root) error {
	b, err := c.of(r)
	if err != nil {
		return fmt.Errorf("create root disk of %s: %w", r.InstanceID, err)
	}
	return b.Create(ctx, r)
}

// Mount implements Backend.
func (c *choice) Mount(ctx context.Context, r Root) (path string, err error) {
	first, err := c.of(r)
	if err != nil {
		return "", fmt.Errorf("mount root disk of %s: %w", r.InstanceID, err)
	}
	if path, err = first.Mount(ctx, r); !errors.Is(err, ErrNotFound) {
		return path, err
	}
	err = c.any(func(b Backend) error {
		path, err = b.Mount(ctx, r)
		return err
	})
	return path, err
}

// Unmount implements Backend. An instance without a root disk in one of them is no error there.
func (c *choice) Unmount(ctx context.Context, instanceID string) error {
	return c.each(func(b Backend) error { return b.Unmount(ctx, instanceID) })
}

// Grow implements Backend.
func (c *choice) Grow(ctx context.Context, instanceID string, sizeGB int) error {
	return c.any(func(b Backend) error { return b.Grow(ctx, instanceID, sizeGB) })
}

// Flush implements Copier; a back end that copies nothing needs none.
func (c *choice) Flush(ctx context.Context, instanceID string) error {
	return c.any(func(b Backend) error {
		if copier, ok := b.(Copier); ok {
			return copier.Flush(ctx, instanceID)
		}
		return ErrNotFound
	})
}

// Copy implements Copier, as far as the back end of the root disk does.
func (c *choice) Copy(ctx context.Context, from string, to Root) error {
	return c.any(func(b Backend) error {
		if copier, ok := b.(Copier); ok {
			return copier.Copy(ctx, from, to)
		}
		list, err := b.List(ctx)
		switch {
		case err != nil:
			return err
		case slices.Contains(list, from):
			return fmt.Errorf("%w: %s copies no root disks", ErrUnsupported, b.Name())
		}
		return ErrNotFound
	})
}

// Delete implements Backend.
func (c *choice) Delete(ctx context.Context, instanceID string) error {
	return c.each(func(b Backend) error { return b.Delete(ctx, instanceID) })
}

// Devices implements Devicer.
func (c *choice) Devices(ctx context.Context, instanceID string) (devices []Device, err error) {
	err = c.any(func(b Backend) error {
		d, ok := b.(Devicer)
		if !ok {
			return ErrNotFound
		}
		devices, err = d.Devices(ctx, instanceID)
		return err
	})
	return devices, err
}

// Healthy implements HealthChecker; a root disk of a back end that cannot tell is not.
func (c *choice) Healthy(ctx context.Context, instanceID string) (healthy bool, err error) {
	err = c.any(func(b Backend) error {
		s, ok := b.(HealthChecker)
		if !ok {
			return ErrNotFound
		}
		healthy, err = s.Healthy(ctx, instanceID)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return healthy, err
}

// List implements Backend.
func (c *choice) List(ctx context.Context) ([]string, error) {
	var all []string
	err := c.each(func(b Backend) error {
		list, err := b.List(ctx)
		all = append(all, list...)
		return err
	})
	slices.Sort(all)
	return slices.Compact(all), err
}

// Usage implements Backend with the default pool.
func (c *choice) Usage(ctx context.Context) (Usage, error) { return c.PoolUsage(ctx, "") }

// Run implements Runner.
func (c *choice) Run(ctx context.Context) error {
	var work sync.WaitGroup
	errs := make([]error, len(c.all))
	for i, b := range c.all {
		if r, ok := b.(Runner); ok {
			work.Go(func() { errs[i] = r.Run(ctx) })
		}
	}
	work.Wait()
	return errors.Join(errs...)
}
