package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// DiskFile holds a root disk of FileRoots, in its instance's directory.
const DiskFile = "disk.img"

// FileRoots are root disks that are an ext4 file system in a sparse file each, or a plain
// directory if they have no size. Beside what Roots do they implement storage.Shrinker,
// storage.Copier and storage.Devicer, and Grow of storage.Backend.
type FileRoots struct {
	*Roots
	inodesPerGB int
}

// OpenFileRoots opens the root disks in dir, making it if needed. inodesPerGB bounds the files
// in a root disk; 0: what mkfs gives. remove is Options.Remove.
func OpenFileRoots(dir string, inodesPerGB int, remove func(dir string) error) (*FileRoots, error) {
	roots, err := OpenRoots(dir, Options{
		Drop:   func(dir string) error { return ext4.Shutdown(filepath.Join(dir, DiskFile)) },
		Remove: remove,
	})
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(ext4.Program); err != nil {
		return nil, fmt.Errorf("%w: %s is missing (package e2fsprogs)", storage.ErrUnsupported, ext4.Program)
	}
	return &FileRoots{roots, inodesPerGB}, nil
}

// MakeFile makes the file of a root disk in dir.
func (b *FileRoots) MakeFile(ctx context.Context, dir string, sizeGB int) error {
	return ext4.Create(ctx, filepath.Join(dir, DiskFile), ext4.Format{SizeGB: sizeGB, InodesPerGB: b.inodesPerGB})
}

// File is where the file of an instance's root disk is.
func (b *FileRoots) File(instanceID string) string { return b.Pool.Path(instanceID, DiskFile) }

// Grow implements storage.Backend.
func (b *FileRoots) Grow(ctx context.Context, instanceID string, sizeGB int) error {
	return b.GrowBy(instanceID, sizeGB, func() error { return ext4.Grow(ctx, b.File(instanceID), sizeGB) })
}

// Shrink implements storage.Shrinker.
func (b *FileRoots) Shrink(ctx context.Context, instanceID string, sizeGB int) error {
	return b.ShrinkBy(instanceID, sizeGB, func() error { return ext4.Shrink(ctx, b.File(instanceID), sizeGB) })
}

// Flush implements storage.Copier. What is mounted at rootfs leads to the file system in the file, be it
// below an overlay; where nothing is, to the host's, whose writing back does no harm.
func (b *FileRoots) Flush(_ context.Context, instanceID string) error {
	if _, err := b.Pool.Get(instanceID); err != nil {
		return fmt.Errorf("flush root disk: %w", err)
	}
	return ext4.Sync(b.Pool.Path(instanceID, RootfsDir))
}

// Copy implements storage.Copier: the file is copied as it is. A root disk without one is a plain
// directory and is not copied.
func (b *FileRoots) Copy(ctx context.Context, from string, to storage.Root) error {
	have, err := b.Pool.Get(from)
	if err != nil {
		return fmt.Errorf("copy root disk: %w", err)
	}
	if have.SizeGB == 0 {
		return fmt.Errorf("copy root disk of %s: %w: it has no size", from, storage.ErrUnsupported)
	}
	have.InstanceID = to.InstanceID
	err = have.Check()
	if err == nil {
		err = b.Pool.Add(to.InstanceID, have, func(dir string) error {
			if err := b.Flush(ctx, from); err != nil {
				return err
			}
			return ext4.Copy(ctx, b.File(from), filepath.Join(dir, DiskFile))
		})
	}
	if err != nil {
		return fmt.Errorf("copy root disk of %s: %w", from, err)
	}
	return nil
}

// Sound implements storage.Sounder.
func (b *FileRoots) Sound(_ context.Context, instanceID string) (bool, error) {
	r, err := b.Pool.Get(instanceID)
	if err != nil {
		return false, err
	}
	mounted, err := mount.Is(filepath.Join(b.Pool.Path(instanceID), RootfsDir))
	if err != nil || !mounted || r.SizeGB == 0 {
		return mounted, err
	}
	return ext4.Sound(b.File(instanceID))
}

// Devices implements storage.Devicer: the loop device, which is the root disk's own; without a size
// the disks that the pool lies on.
func (b *FileRoots) Devices(_ context.Context, instanceID string) ([]storage.Device, error) {
	r, err := b.Pool.Get(instanceID)
	if err != nil {
		return nil, err
	}
	if r.SizeGB == 0 {
		return mount.Devices(b.Pool.Path(instanceID))
	}
	number, err := loop.Number(b.File(instanceID))
	if err == nil && number == "" {
		err = errors.New("the root disk is not mounted")
	}
	if err != nil {
		return nil, fmt.Errorf("find device of %s: %w", instanceID, err)
	}
	return []storage.Device{{Number: number, Own: true}}, nil
}
