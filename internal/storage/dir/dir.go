// Package dir is the storage back end without an overlay: every instance has a copy
// of the image of its own, with its ids. It is slower and larger than overlay, and
// right for guests that mount overlays themselves and for hosts whose kernel or
// file system cannot id-map.
//
//	<dir>/<instance>/disk.img   an ext4 file system of the flavor's size, mounted at rootfs
//	<dir>/<instance>/rootfs     the tree; a plain directory when there is no quota
package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/treecopy"
)

const (
	diskFile  = "disk.img"
	rootfsDir = "rootfs"
)

// Backend implements storage.Backend and storage.Runner.
type Backend struct {
	pool        *pool.Pool[storage.Root]
	inodesPerGB int
}

var (
	_ storage.Backend = (*Backend)(nil)
	_ storage.Runner  = (*Backend)(nil)
	_ storage.Devicer = (*Backend)(nil)
)

// New opens the root disks in dir, making it if needed. inodesPerGB bounds the files of a
// root disk; 0: what mkfs gives.
func New(dir string, inodesPerGB int) (*Backend, error) {
	p, err := pool.Open[storage.Root](dir, pool.Options{Record: "root.json", Drop: drop})
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(ext4.Program); err != nil {
		return nil, fmt.Errorf("%w: %s is missing (package e2fsprogs)", storage.ErrUnsupported, ext4.Program)
	}
	return &Backend{pool: p, inodesPerGB: inodesPerGB}, nil
}

func drop(dir string) error { return ext4.Shutdown(filepath.Join(dir, diskFile)) }

// Name implements storage.Backend.
func (b *Backend) Name() string { return "dir" }

// Run implements storage.Runner: it removes the data of deleted root disks.
func (b *Backend) Run(ctx context.Context) error { return b.pool.Run(ctx) }

// Create implements storage.Backend: it copies the image.
func (b *Backend) Create(ctx context.Context, r storage.Root) error {
	err := r.Check()
	if err == nil {
		err = b.pool.Add(r.InstanceID, r, func(dir string) error { return b.fill(ctx, dir, r) })
	}
	if err != nil {
		return fmt.Errorf("create root disk of %s: %w", r.InstanceID, err)
	}
	return nil
}

func (b *Backend) fill(ctx context.Context, dir string, r storage.Root) error {
	rootfs := filepath.Join(dir, rootfsDir)
	if err := mount.Point(rootfs); err != nil {
		return err
	}
	if r.SizeGB == 0 {
		return treecopy.Copy(ctx, r.ImagePath, rootfs, r.IDs)
	}
	disk := filepath.Join(dir, diskFile)
	if err := ext4.Create(ctx, disk, ext4.Format{SizeGB: r.SizeGB, InodesPerGB: b.inodesPerGB}); err != nil {
		return err
	}
	if err := ext4.Mount(ctx, disk, rootfs, r.SizeGB); err != nil {
		return err
	}
	// The guest's root is the file system's: what mkfs put there is not the image's.
	if err := os.Remove(filepath.Join(rootfs, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := treecopy.Copy(ctx, r.ImagePath, rootfs, r.IDs); err != nil {
		return err
	}
	return mount.Unmount(ctx, rootfs)
}

// Mount implements storage.Backend.
func (b *Backend) Mount(ctx context.Context, r storage.Root) (string, error) {
	have, err := b.pool.Get(r.InstanceID)
	if err != nil {
		return "", fmt.Errorf("mount root disk: %w", err)
	}
	path := b.pool.Path(r.InstanceID, rootfsDir)
	mounted, err := mount.Is(path)
	if err == nil && !mounted && have.SizeGB > 0 {
		if err = mount.Point(path); err == nil {
			err = ext4.Mount(ctx, b.pool.Path(r.InstanceID, diskFile), path, have.SizeGB)
		}
	}
	if err != nil {
		return "", fmt.Errorf("mount root disk of %s: %w", r.InstanceID, err)
	}
	return path, nil
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, instanceID string) error {
	if err := b.pool.Unmount(ctx, instanceID); err != nil {
		return fmt.Errorf("unmount root disk of %s: %w", instanceID, err)
	}
	return nil
}

// Grow implements storage.Backend.
func (b *Backend) Grow(ctx context.Context, instanceID string, sizeGB int) error {
	return pool.GrowRoot(b.pool, instanceID, sizeGB, func() error {
		return ext4.Grow(ctx, b.pool.Path(instanceID, diskFile), sizeGB)
	})
}

// Shrink implements storage.Shrinker.
func (b *Backend) Shrink(ctx context.Context, instanceID string, sizeGB int) error {
	return pool.ShrinkRoot(b.pool, instanceID, sizeGB, func() error { return ext4.Shrink(ctx, b.pool.Path(instanceID, diskFile), sizeGB) })
}

// Delete implements storage.Backend. What the guest wrote last is dropped rather
// than written, and the blocks are freed by Run.
func (b *Backend) Delete(ctx context.Context, instanceID string) error {
	if err := b.pool.Delete(ctx, instanceID); err != nil {
		return fmt.Errorf("delete root disk of %s: %w", instanceID, err)
	}
	return nil
}

// Devices implements storage.Devicer.
func (b *Backend) Devices(_ context.Context, instanceID string) ([]storage.Device, error) {
	return pool.RootDevices(b.pool, instanceID, diskFile)
}

// List implements storage.Backend.
func (b *Backend) List(context.Context) ([]string, error) { return b.pool.List() }

// Usage implements storage.Backend.
func (b *Backend) Usage(context.Context) (storage.Usage, error) { return b.pool.Usage() }
