// Package btrfs is the storage back end for hosts whose instances directory is on btrfs: no block of an image is
// copied for a root disk, and none is for a copy of one.
//
//	<dir>/.images/<key>-<n>.img     an ext4 file system of n GiB with the image, in a file; made by the first root disk of that size
//	<dir>/.images/<key>             a subvolume with the image; made by the first root disk of it that has no size
//	<dir>/<instance>/disk.img       a clone of the file (FICLONE), with the image's own ids
//	<dir>/<instance>/.hidden/disk   a snapshot of the subvolume, if the root disk has no size; nobody but root passes here
//	<dir>/<instance>/rootfs         where either is mounted with the instance's ids
//
// A quota group on a subvolume would not do as a size: beyond it a guest gets EDQUOT, and its df shows the pool
// (fs/btrfs/super.c:btrfs_statfs).
package btrfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/compute-agent/compute-agent/internal/keylock"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

const (
	imagesDir = ".images"
	newDir    = ".new" // the pool's: whatever becomes an instance's directory is made there
	hiddenDir = ".hidden"
	diskDir   = "disk"
	// pruneInterval is how often images are looked for that the store has no more.
	pruneInterval = time.Hour
)

// Backend implements storage.Backend.
type Backend struct {
	*pool.FileRoots
	images      string
	inodesPerGB int
	making      keylock.Locks // by image key
}

var (
	_ storage.Backend  = (*Backend)(nil)
	_ storage.Runner   = (*Backend)(nil)
	_ storage.Devicer  = (*Backend)(nil)
	_ storage.Copier   = (*Backend)(nil)
	_ storage.Shrinker = (*Backend)(nil)
)

// New opens the root disks in dir, making it if needed, which must be on btrfs: storage.ErrUnsupported says what is
// missing. inodesPerGB bounds the files of a root disk; 0: what mkfs gives.
func New(dir string, inodesPerGB int) (*Backend, error) {
	roots, err := pool.OpenFileRoots(dir, pool.FileOptions{InodesPerGB: inodesPerGB, Remove: remove})
	if err != nil {
		return nil, err
	}
	kind, err := mount.Type(dir)
	if err != nil {
		return nil, err
	}
	if kind != "btrfs" {
		return nil, fmt.Errorf("%w: %s is not on a btrfs file system; put [lxc] instances_dir on one, or choose another storage_backend", storage.ErrUnsupported, dir)
	}
	b := &Backend{FileRoots: roots, images: filepath.Join(dir, imagesDir), inodesPerGB: inodesPerGB}
	if err := os.MkdirAll(b.images, 0o700); err != nil {
		return nil, fmt.Errorf("open root disks: %w", err)
	}
	if err := b.wipe(); err != nil {
		return nil, fmt.Errorf("open root disks: %w", err)
	}
	// Files of both kinds of directory are cloned to each other, which takes the same of both.
	for _, d := range []string{b.images, filepath.Join(dir, newDir)} {
		if err := writeInPlace(d); err != nil {
			return nil, fmt.Errorf("open root disks: %w", err)
		}
	}
	return b, nil
}

// remove takes a discarded directory away, or one that was being made.
func remove(dir string) error {
	if err := destroy(filepath.Join(dir, hiddenDir, diskDir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Name implements storage.Backend.
func (b *Backend) Name() string { return "btrfs" }

// Create implements storage.Backend.
func (b *Backend) Create(ctx context.Context, r storage.Root) error {
	return b.CreateBy(r, func(dir string) error {
		if r.SizeGB > 0 {
			return b.fromFile(ctx, r.ImagePath, r.SizeGB, filepath.Join(dir, pool.DiskFile))
		}
		hidden := filepath.Join(dir, hiddenDir)
		if err := os.Mkdir(hidden, 0o700); err != nil {
			return err
		}
		return b.fromSubvolume(ctx, r.ImagePath, filepath.Join(hidden, diskDir))
	})
}

// Mount implements storage.Backend.
func (b *Backend) Mount(ctx context.Context, r storage.Root) (string, error) {
	return b.MountBy(r, func(have storage.Root, dir string) error {
		path := filepath.Join(dir, pool.RootfsDir)
		if err := mount.Point(path); err != nil {
			return err
		}
		if have.SizeGB > 0 {
			return ext4.MountIDMapped(ctx, filepath.Join(dir, pool.DiskFile), path, have.SizeGB, have.IDs)
		}
		return mount.CloneIDMapped(filepath.Join(dir, hiddenDir, diskDir), path, have.IDs, true)
	})
}

// Run implements storage.Runner: it removes the data of deleted root disks, and what is here of images
// that the store has no more. The root disks made from them stay as they are.
func (b *Backend) Run(ctx context.Context) error {
	done := make(chan error, 1) // the pool's work ends with ctx
	go func() { done <- b.Roots.Run(ctx) }()
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		if err := b.prune(ctx); err != nil {
			reqctx.Log(ctx).WithField("path", b.images).WithError(err).Warning("images not removed from the pool yet")
		}
		select {
		case <-ctx.Done():
			return <-done
		case <-tick.C:
		}
	}
}
