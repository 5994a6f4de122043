package storage

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// WithNested is a back end that gives guests which mount overlays themselves
// (Root.Nested) a root disk of nested, and all others one of normal.
func WithNested(normal, nested Backend) Backend { return &byNesting{normal: normal, nested: nested} }

type byNesting struct {
	normal, nested Backend
}

func (b *byNesting) of(r Root) Backend {
	if r.Nested {
		return b.nested
	}
	return b.normal
}

// Name implements Backend.
func (b *byNesting) Name() string { return b.normal.Name() }

// Create implements Backend.
func (b *byNesting) Create(ctx context.Context, r Root) error { return b.of(r).Create(ctx, r) }

// Mount implements Backend.
func (b *byNesting) Mount(ctx context.Context, r Root) (string, error) { return b.of(r).Mount(ctx, r) }

// Unmount implements Backend. An instance without a root disk in one of them is no error there.
func (b *byNesting) Unmount(ctx context.Context, instanceID string) error {
	return errors.Join(b.normal.Unmount(ctx, instanceID), b.nested.Unmount(ctx, instanceID))
}

// Grow implements Backend.
func (b *byNesting) Grow(ctx context.Context, instanceID string, sizeGB int) error {
	err := b.normal.Grow(ctx, instanceID, sizeGB)
	if errors.Is(err, ErrNotFound) {
		return b.nested.Grow(ctx, instanceID, sizeGB)
	}
	return err
}

// Delete implements Backend.
func (b *byNesting) Delete(ctx context.Context, instanceID string) error {
	return errors.Join(b.normal.Delete(ctx, instanceID), b.nested.Delete(ctx, instanceID))
}

// Devices implements Devicer.
func (b *byNesting) Devices(ctx context.Context, instanceID string) ([]Device, error) {
	for _, back := range []Backend{b.normal, b.nested} {
		d, ok := back.(Devicer)
		if !ok {
			continue
		}
		devices, err := d.Devices(ctx, instanceID)
		if !errors.Is(err, ErrNotFound) {
			return devices, err
		}
	}
	return nil, ErrNotFound
}

// List implements Backend.
func (b *byNesting) List(ctx context.Context) ([]string, error) {
	normal, err := b.normal.List(ctx)
	nested, nestedErr := b.nested.List(ctx)
	all := slices.Concat(normal, nested)
	slices.Sort(all)
	return slices.Compact(all), errors.Join(err, nestedErr)
}

// Usage implements Backend with the pool that most instances use.
func (b *byNesting) Usage(ctx context.Context) (Usage, error) { return b.normal.Usage(ctx) }

// Run implements Runner.
func (b *byNesting) Run(ctx context.Context) error {
	var work sync.WaitGroup
	errs := make([]error, 2)
	for i, back := range []Backend{b.normal, b.nested} {
		if r, ok := back.(Runner); ok {
			work.Go(func() { errs[i] = r.Run(ctx) })
		}
	}
	work.Wait()
	return errors.Join(errs...)
}
