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
	"github.com/compute-agent/compute-agent/internal/storage/prjquota"
)

// DiskFile holds a root disk of FileRoots, in its instance's directory.
const DiskFile = "disk.img"

// FileRoots are root disks that are an ext4 file system in a sparse file each, or a directory with a project quota (see
// bounded.go), or a plain directory if they have no size. Beside what Roots do they implement storage.Shrinker,
// storage.Copier and storage.Devicer, and Grow of storage.Backend.
type FileRoots struct {
	*Roots
	o FileOptions
}

// FileOptions say what new root disks are.
type FileOptions struct {
	InodesPerGB  int  // bounds the files in a root disk; 0: what mkfs gives
	ProjectQuota bool // they are directories with a project quota
	// Remove takes a discarded directory away; nil: os.RemoveAll.
	Remove func(dir string) error
}

// OpenFileRoots opens the root disks in dir, making it if needed. storage.ErrUnsupported: the host lacks what they need.
func OpenFileRoots(dir string, o FileOptions) (*FileRoots, error) {
	if o.Remove == nil {
		o.Remove = os.RemoveAll
	}
	roots, err := OpenRoots(dir, Options{
		Drop:   func(dir string) error { return ext4.Shutdown(filepath.Join(dir, DiskFile)) },
		Remove: func(dir string) error { return removeDisk(dir, o.Remove) },
	})
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(ext4.Program); err != nil {
		return nil, fmt.Errorf("%w: %s is missing (package e2fsprogs)", storage.ErrUnsupported, ext4.Program)
	}
	b := &FileRoots{roots, o}
	if o.ProjectQuota {
		if err := b.probe(); err != nil {
			return nil, fmt.Errorf("try project quotas in %s: %w", dir, err)
		}
	}
	return b, nil
}

// MakeDisk makes the file of a root disk in dir, or its directory.
func (b *FileRoots) MakeDisk(ctx context.Context, dir string, sizeGB int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if b.o.ProjectQuota {
		return prjquota.Make(filepath.Join(dir, boundedDir), b.limit(sizeGB))
	}
	return ext4.Create(ctx, filepath.Join(dir, DiskFile), ext4.Format{SizeGB: sizeGB, InodesPerGB: b.o.InodesPerGB})
}

// MountDisk makes what is in the root disk in dir appear at target. A Grow that was cut off is completed.
func (b *FileRoots) MountDisk(ctx context.Context, dir, target string, sizeGB int) error {
	if !isBounded(dir) {
		return ext4.Mount(ctx, filepath.Join(dir, DiskFile), target, sizeGB)
	}
	if err := b.setLimit(dir, sizeGB); err != nil {
		return err
	}
	return mount.Clone(filepath.Join(dir, boundedDir), target)
}

// OpenDisk makes what is in the root disk of an instance reachable until done is called, mounted or not.
func (b *FileRoots) OpenDisk(instanceID string) (path string, done func() error, err error) {
	if dir := b.Pool.Path(instanceID); isBounded(dir) {
		return filepath.Join(dir, boundedDir), func() error { return nil }, nil
	}
	fs, err := ext4.Open(b.File(instanceID))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d", fs.Fd()), fs.Close, nil
}

// File is where the file of an instance's root disk is.
func (b *FileRoots) File(instanceID string) string { return b.Pool.Path(instanceID, DiskFile) }

// Grow implements storage.Backend.
func (b *FileRoots) Grow(ctx context.Context, instanceID string, sizeGB int) error {
	return b.GrowBy(instanceID, sizeGB, func() error {
		if dir := b.Pool.Path(instanceID); isBounded(dir) {
			return b.setLimit(dir, sizeGB)
		}
		return ext4.Grow(ctx, b.File(instanceID), sizeGB)
	})
}

// Shrink implements storage.Shrinker.
func (b *FileRoots) Shrink(ctx context.Context, instanceID string, sizeGB int) error {
	return b.ShrinkBy(instanceID, sizeGB, func() error {
		if dir := b.Pool.Path(instanceID); isBounded(dir) {
			return b.lowerLimit(dir, sizeGB)
		}
		return ext4.Shrink(ctx, b.File(instanceID), sizeGB)
	})
}

// Flush implements storage.Copier. What is mounted at rootfs leads to the file system in the file, be it
// below an overlay; where nothing is, to the host's, whose writing back does no harm. A directory is
// copied from the host's memory, and nothing is to be written for that.
func (b *FileRoots) Flush(_ context.Context, instanceID string) error {
	if _, err := b.Pool.Get(instanceID); err != nil {
		return fmt.Errorf("flush root disk: %w", err)
	}
	if isBounded(b.Pool.Path(instanceID)) {
		return nil
	}
	return mount.Sync(b.Pool.Path(instanceID, RootfsDir))
}

// Copy implements storage.Copier: the file is copied as it is, a directory with a quota file by file to another with a
// quota. A root disk without a size is a plain directory and is not copied.
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
			if source := b.Pool.Path(from); isBounded(source) {
				return b.copyBounded(ctx, source, dir, have.SizeGB)
			}
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

// Healthy implements storage.HealthChecker.
func (b *FileRoots) Healthy(_ context.Context, instanceID string) (bool, error) {
	r, err := b.Pool.Get(instanceID)
	if err != nil {
		return false, err
	}
	dir := b.Pool.Path(instanceID)
	mounted, err := mount.Is(filepath.Join(dir, RootfsDir))
	if err != nil || !mounted || r.SizeGB == 0 || isBounded(dir) {
		return mounted, err
	}
	return ext4.Healthy(b.File(instanceID))
}

// Devices implements storage.Devicer: the loop device, which is the root disk's own; without one
// the disks that the pool lies on.
func (b *FileRoots) Devices(_ context.Context, instanceID string) ([]storage.Device, error) {
	r, err := b.Pool.Get(instanceID)
	if err != nil {
		return nil, err
	}
	if dir := b.Pool.Path(instanceID); r.SizeGB == 0 || isBounded(dir) {
		return mount.Devices(dir)
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
