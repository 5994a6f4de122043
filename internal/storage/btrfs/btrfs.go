// Package btrfs is the storage back end for hosts whose instances directory is on btrfs: a root disk
// is a snapshot of a subvolume with the image, bounded by a quota group.
//
//	<dir>/.images/<key>             a subvolume with the image; made once, by the first root disk of it
//	<dir>/<instance>/.hidden/disk   the snapshot, with the image's own ids; nobody but root passes here
//	<dir>/<instance>/rootfs         where it is mounted with the instance's ids
//
// The quota counts what a root disk refers to, its image included. Beyond it the guest gets EDQUOT; its
// df shows the pool, since the file system is the pool's (fs/btrfs/super.c:btrfs_statfs).
package btrfs

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/compute-agent/compute-agent/internal/keylock"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/treecopy"
)

const (
	imagesDir = ".images"
	hiddenDir = ".hidden"
	diskDir   = "disk"
	// pruneInterval is how often images are looked for that the store has no more.
	pruneInterval = time.Hour
)

// Backend implements storage.Backend.
type Backend struct {
	*pool.Roots
	images string
	making keylock.Locks // by image key
}

var (
	_ storage.Backend  = (*Backend)(nil)
	_ storage.Runner   = (*Backend)(nil)
	_ storage.Devicer  = (*Backend)(nil)
	_ storage.Shrinker = (*Backend)(nil)
)

// New opens the root disks in dir, making it if needed, which must be on btrfs, and switches its quotas on:
// storage.ErrUnsupported says what is missing.
func New(dir string) (*Backend, error) {
	roots, err := pool.OpenRoots(dir, pool.Options{Remove: remove})
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
	b := &Backend{Roots: roots, images: filepath.Join(dir, imagesDir)}
	if err := os.MkdirAll(b.images, 0o700); err != nil {
		return nil, fmt.Errorf("open root disks: %w", err)
	}
	if err := b.wipe(); err != nil {
		return nil, fmt.Errorf("open root disks: %w", err)
	}
	if err := enableQuota(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", storage.ErrUnsupported, err)
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
	return b.CreateBy(r, func(dir string) error { return b.fill(ctx, dir, r) })
}

func (b *Backend) fill(ctx context.Context, dir string, r storage.Root) error {
	hidden := filepath.Join(dir, hiddenDir)
	if err := os.Mkdir(hidden, 0o700); err != nil {
		return err
	}
	disk := filepath.Join(hidden, diskDir)
	if err := b.fromImage(ctx, r.ImagePath, disk); err != nil {
		return err
	}
	return limit(disk, uint64(r.SizeGB)<<30) //nolint:gosec // positive
}

// fromImage makes a snapshot of an image. The image's subvolume is made if it is not there.
func (b *Backend) fromImage(ctx context.Context, image, disk string) error {
	name := key(image)
	unlock, err := b.making.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	source := filepath.Join(b.images, name)
	if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) {
		if err := b.importImage(ctx, image, source); err != nil {
			return fmt.Errorf("bring image into the pool: %w", err)
		}
	} else if err != nil {
		return err
	}
	return snapshot(source, disk)
}

// key names an image's subvolume. Images are stored under a name of their content, so that a path never changes what it means.
func key(image string) string {
	sum := sha256.Sum256([]byte(image))
	return hex.EncodeToString(sum[:16])
}

// importImage copies an image into a subvolume; on the same file system the copy shares the blocks.
func (b *Backend) importImage(ctx context.Context, image, target string) error {
	half := filepath.Join(b.images, ".new-"+rand.Text())
	if err := createSubvolume(half); err != nil {
		return err
	}
	err := treecopy.Copy(ctx, image, half, treecopy.AsIs)
	if err == nil {
		err = os.WriteFile(target+".path", []byte(image), 0o600)
	}
	if err == nil {
		err = os.Rename(half, target)
	}
	if err != nil {
		return errors.Join(err, destroy(half))
	}
	return nil
}

// wipe takes away what a crash left of an image that was being brought in.
func (b *Backend) wipe() error {
	half, err := filepath.Glob(filepath.Join(b.images, ".new-*"))
	for _, path := range half {
		err = errors.Join(err, destroy(path))
	}
	return err
}

// Mount implements storage.Backend.
func (b *Backend) Mount(_ context.Context, r storage.Root) (string, error) {
	return b.MountBy(r, func(have storage.Root, dir string) error {
		disk, path := b.disk(have.InstanceID), filepath.Join(dir, pool.RootfsDir)
		// A Grow that was cut off is completed.
		if err := limit(disk, uint64(have.SizeGB)<<30); err != nil { //nolint:gosec // positive
			return err
		}
		if err := mount.Point(path); err != nil {
			return err
		}
		return mount.CloneIDMapped(disk, path, have.IDs, true)
	})
}

func (b *Backend) disk(instanceID string) string {
	return b.Pool.Path(instanceID, hiddenDir, diskDir)
}

// Grow implements storage.Backend.
func (b *Backend) Grow(_ context.Context, instanceID string, sizeGB int) error {
	return b.GrowBy(instanceID, sizeGB, func() error {
		return limit(b.disk(instanceID), uint64(sizeGB)<<30) //nolint:gosec // positive
	})
}

// Shrink implements storage.Shrinker: a quota can always be lowered. Who lowers it below what is used keeps the
// guest from writing, no more.
func (b *Backend) Shrink(_ context.Context, instanceID string, sizeGB int) error {
	return b.ShrinkBy(instanceID, sizeGB, func() error {
		return limit(b.disk(instanceID), uint64(sizeGB)<<30) //nolint:gosec // positive
	})
}

// Devices implements storage.Devicer: the pool's, which all instances share.
func (b *Backend) Devices(_ context.Context, instanceID string) ([]storage.Device, error) {
	if _, err := b.Pool.Get(instanceID); err != nil {
		return nil, err
	}
	return mount.Devices(b.Pool.Path(instanceID))
}

// Run implements storage.Runner: it removes the data of deleted root disks, and the subvolumes of images
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

func (b *Backend) prune(ctx context.Context) error {
	notes, err := filepath.Glob(filepath.Join(b.images, "*.path"))
	errs := []error{err}
	for _, note := range notes {
		errs = append(errs, b.pruneOne(ctx, note))
	}
	return errors.Join(errs...)
}

func (b *Backend) pruneOne(ctx context.Context, note string) error {
	image, err := os.ReadFile(note)
	if err != nil {
		return err
	}
	if _, err := os.Stat(string(image)); !errors.Is(err, os.ErrNotExist) { //nolint:gosec // a note of our own, in a directory that is closed to others
		return err
	}
	name := key(string(image))
	unlock, err := b.making.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := destroy(filepath.Join(b.images, name)); err != nil {
		return err
	}
	return os.Remove(note)
}
