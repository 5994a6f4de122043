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
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

const (
	diskFile  = "disk.img"
	rootfsDir = "rootfs"
	// busyTimeout bounds the wait for users of a root disk when the caller's own deadline is later.
	busyTimeout = 10 * time.Second
)

// Backend implements storage.Backend and storage.Runner.
type Backend struct {
	pool *pool.Pool
}

var (
	_ storage.Backend = (*Backend)(nil)
	_ storage.Runner  = (*Backend)(nil)
)

// New opens the root disks in dir, making it if needed.
func New(dir string) (*Backend, error) {
	p, err := pool.Open(dir, release)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(ext4.Program); err != nil {
		return nil, fmt.Errorf("%w: %s is missing (package e2fsprogs)", storage.ErrUnsupported, ext4.Program)
	}
	return &Backend{pool: p}, nil
}

func release(dir string) error { return mount.Detach(filepath.Join(dir, rootfsDir)) }

// Name implements storage.Backend.
func (b *Backend) Name() string { return "dir" }

// Run implements storage.Runner: it removes the data of deleted root disks.
func (b *Backend) Run(ctx context.Context) error { return b.pool.Run(ctx) }

// Create implements storage.Backend: it copies the image.
func (b *Backend) Create(ctx context.Context, r storage.Root) error {
	err := b.pool.Add(r, func(dir string) error { return fill(ctx, dir, r) })
	if err != nil {
		return fmt.Errorf("create root disk of %s: %w", r.InstanceID, err)
	}
	return nil
}

func fill(ctx context.Context, dir string, r storage.Root) error {
	rootfs := filepath.Join(dir, rootfsDir)
	if err := mount.Point(rootfs); err != nil {
		return err
	}
	if r.SizeGB == 0 {
		return copyTree(ctx, r.ImagePath, rootfs, r.IDs)
	}
	disk := filepath.Join(dir, diskFile)
	if err := ext4.Create(ctx, disk, r.SizeGB); err != nil {
		return err
	}
	if err := ext4.Mount(disk, rootfs); err != nil {
		return err
	}
	// The guest's root is the file system's: what mkfs put there is not the image's.
	if err := os.Remove(filepath.Join(rootfs, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := copyTree(ctx, r.ImagePath, rootfs, r.IDs); err != nil {
		return err
	}
	return mount.Unmount(ctx, rootfs)
}

// Mount implements storage.Backend.
func (b *Backend) Mount(_ context.Context, r storage.Root) (string, error) {
	have, err := b.pool.Root(r.InstanceID)
	if err != nil {
		return "", fmt.Errorf("mount root disk: %w", err)
	}
	path := b.pool.Path(r.InstanceID, rootfsDir)
	mounted, err := mount.Is(path)
	if err == nil && !mounted && have.SizeGB > 0 {
		if err = mount.Point(path); err == nil {
			err = ext4.Mount(b.pool.Path(r.InstanceID, diskFile), path)
		}
	}
	if err != nil {
		return "", fmt.Errorf("mount root disk of %s: %w", r.InstanceID, err)
	}
	return path, nil
}

// Unmount implements storage.Backend.
func (b *Backend) Unmount(ctx context.Context, instanceID string) error {
	if err := pool.CheckID(instanceID); err != nil {
		return fmt.Errorf("unmount root disk: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	if err := mount.Unmount(ctx, b.pool.Path(instanceID, rootfsDir)); err != nil {
		return fmt.Errorf("unmount root disk of %s: %w", instanceID, err)
	}
	return nil
}

// Delete implements storage.Backend. What the guest wrote last is dropped rather
// than written, and the blocks are freed by Run.
func (b *Backend) Delete(ctx context.Context, instanceID string) error {
	if err := pool.CheckID(instanceID); err != nil {
		return fmt.Errorf("delete root disk: %w", err)
	}
	log := reqctx.Log(ctx).WithField("instance", instanceID)
	if err := ext4.Shutdown(b.pool.Path(instanceID, diskFile)); err != nil {
		log.WithError(err).Debug("root disk is unmounted with its data") // slower, no more
	}
	err := b.Unmount(ctx, instanceID)
	if errors.Is(err, storage.ErrBusy) && ctx.Err() == nil {
		log.WithError(err).Warning("root disk is still in use, detaching it")
		err = release(b.pool.Path(instanceID))
	}
	if err == nil {
		err = b.pool.Discard(instanceID)
	}
	if err != nil {
		return fmt.Errorf("delete root disk of %s: %w", instanceID, err)
	}
	return nil
}

// List implements storage.Backend.
func (b *Backend) List(context.Context) ([]string, error) { return b.pool.List() }

// Usage implements storage.Backend.
func (b *Backend) Usage(context.Context) (storage.Usage, error) { return b.pool.Usage() }
