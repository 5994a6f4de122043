// Package dir is the storage back end without an overlay: every instance has a copy
// of the image of its own, with its ids. It is slower and larger than overlay, and
// right for guests that mount overlays themselves and for hosts whose kernel or
// file system cannot id-map.
//
//	<dir>/<instance>/disk.img   an ext4 file system of the flavor's size, mounted at rootfs
//	<dir>/<instance>/bounded    instead of it, a directory with a project quota, mounted at rootfs
//	<dir>/<instance>/rootfs     the tree; a plain directory when there is no quota
package dir

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/treecopy"
)

// Backend implements storage.Backend.
type Backend struct {
	*pool.FileRoots
}

var (
	_ storage.Backend  = (*Backend)(nil)
	_ storage.Runner   = (*Backend)(nil)
	_ storage.Devicer  = (*Backend)(nil)
	_ storage.Copier   = (*Backend)(nil)
	_ storage.Shrinker = (*Backend)(nil)
)

// New opens the root disks in dir, making it if needed.
func New(dir string, o pool.FileOptions) (*Backend, error) {
	roots, err := pool.OpenFileRoots(dir, o)
	if err != nil {
		return nil, err
	}
	return &Backend{roots}, nil
}

// Name implements storage.Backend.
func (b *Backend) Name() string { return "dir" }

// Create implements storage.Backend: it copies the image.
func (b *Backend) Create(ctx context.Context, r storage.Root) error {
	return b.CreateBy(r, func(dir string) error { return b.fill(ctx, dir, r) })
}

func (b *Backend) fill(ctx context.Context, dir string, r storage.Root) error {
	rootfs := filepath.Join(dir, pool.RootfsDir)
	if err := mount.Point(rootfs); err != nil {
		return err
	}
	if r.SizeGB == 0 {
		return treecopy.Copy(ctx, r.ImagePath, rootfs, r.IDs)
	}
	if err := b.MakeDisk(ctx, dir, r.SizeGB); err != nil {
		return err
	}
	if err := b.MountDisk(ctx, dir, rootfs, r.SizeGB); err != nil {
		return err
	}
	// The guest's root is the file system's: what mkfs put there is not the image's.
	if err := os.Remove(filepath.Join(rootfs, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := treecopy.Copy(ctx, r.ImagePath, rootfs, r.IDs); err != nil {
		return err
	}
	if err := b.Settle(dir); err != nil {
		return err
	}
	return mount.Unmount(ctx, rootfs)
}

// Mount implements storage.Backend.
func (b *Backend) Mount(ctx context.Context, r storage.Root) (string, error) {
	return b.MountBy(r, func(have storage.Root, dir string) error {
		if have.SizeGB == 0 {
			return nil
		}
		rootfs := filepath.Join(dir, pool.RootfsDir)
		if err := mount.Point(rootfs); err != nil {
			return err
		}
		return b.MountDisk(ctx, dir, rootfs, have.SizeGB)
	})
}
