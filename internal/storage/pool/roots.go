package pool

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// RootfsDir is where a root disk is mounted, in its instance's directory.
const RootfsDir = "rootfs"

// Roots are the root disks of a back end, which embeds them: they do of storage.Backend and
// storage.Runner what is the same for all. A method "…By" lets the back end do its part.
type Roots struct {
	Pool *Pool[storage.Root]
}

// OpenRoots opens the root disks in dir; see Open.
func OpenRoots(dir string, o Options) (*Roots, error) {
	o.Record = "root.json"
	p, err := Open[storage.Root](dir, o)
	if err != nil {
		return nil, err
	}
	return &Roots{Pool: p}, nil
}

// CreateBy makes a root disk: fill makes what is in its directory.
func (b *Roots) CreateBy(r storage.Root, fill func(dir string) error) error {
	err := r.Check()
	if err == nil {
		err = b.Pool.Add(r.InstanceID, r, fill)
	}
	if err != nil {
		return fmt.Errorf("create root disk of %s: %w", r.InstanceID, err)
	}
	return nil
}

// MountBy mounts a root disk that is not mounted: attach makes it appear at rootfs in its directory.
// What r asks for does not count, but what the disk was made from, which attach hears.
func (b *Roots) MountBy(r storage.Root, attach func(have storage.Root, dir string) error) (string, error) {
	have, err := b.Pool.Get(r.InstanceID)
	if err != nil {
		return "", fmt.Errorf("mount root disk: %w", err)
	}
	dir := b.Pool.Path(r.InstanceID)
	path := filepath.Join(dir, RootfsDir)
	mounted, err := mount.Is(path)
	if err == nil && !mounted {
		err = attach(have, dir)
	}
	if err != nil {
		return "", fmt.Errorf("mount root disk of %s: %w", r.InstanceID, err)
	}
	return path, nil
}

// Unmount implements storage.Backend.
func (b *Roots) Unmount(ctx context.Context, instanceID string) error {
	if err := b.Pool.Unmount(ctx, instanceID); err != nil {
		return fmt.Errorf("unmount root disk of %s: %w", instanceID, err)
	}
	return nil
}

// GrowBy does what Grow of storage.Backend says. The record comes first: Mount goes by it and
// completes what was cut off here.
func (b *Roots) GrowBy(instanceID string, sizeGB int, grow func() error) error {
	r, err := b.Pool.Get(instanceID)
	switch {
	case err != nil:
	case r.SizeGB == 0:
		err = fmt.Errorf("%w: the disk has no size of its own", storage.ErrUnsupported)
	case sizeGB < r.SizeGB:
		err = fmt.Errorf("%w: the disk has %d GiB already and cannot shrink", storage.ErrUnsupported, r.SizeGB)
	default:
		if sizeGB > r.SizeGB {
			r.SizeGB = sizeGB
			err = b.Pool.Set(instanceID, r)
		}
		if err == nil {
			err = grow()
		}
	}
	if err != nil {
		return fmt.Errorf("grow root disk of %s: %w", instanceID, err)
	}
	return nil
}

// ShrinkBy does what storage.Shrinker says. The record follows the disk: one that is smaller than its
// record grows at the next mount, so that a crash in between leaves it as it was.
func (b *Roots) ShrinkBy(instanceID string, sizeGB int, shrink func() error) error {
	r, err := b.Pool.Get(instanceID)
	if err != nil {
		return fmt.Errorf("shrink root disk: %w", err)
	}
	if r.SizeGB == 0 || sizeGB <= 0 || r.SizeGB < sizeGB {
		return fmt.Errorf("shrink root disk of %s from %d to %d GiB: %w", instanceID, r.SizeGB, sizeGB, storage.ErrUnsupported)
	}
	if err := shrink(); err != nil {
		return fmt.Errorf("shrink root disk of %s to %d GiB: %w", instanceID, sizeGB, err)
	}
	r.SizeGB = sizeGB
	return b.Pool.Set(instanceID, r)
}

// Delete implements storage.Backend. What the guest wrote last is dropped rather
// than written, and the blocks are freed by Run.
func (b *Roots) Delete(ctx context.Context, instanceID string) error {
	if err := b.Pool.Delete(ctx, instanceID); err != nil {
		return fmt.Errorf("delete root disk of %s: %w", instanceID, err)
	}
	return nil
}

// List implements storage.Backend.
func (b *Roots) List(context.Context) ([]string, error) { return b.Pool.List() }

// Usage implements storage.Backend.
func (b *Roots) Usage(context.Context) (storage.Usage, error) { return b.Pool.Usage() }

// Run implements storage.Runner: it removes the data of deleted root disks.
func (b *Roots) Run(ctx context.Context) error { return b.Pool.Run(ctx) }
