// Package overlay is the default storage back end: the image's tree, shared by all
// instances and id-mapped for each, lies below an instance's own changes, which go
// to an ext4 file system of the flavor's size in a sparse file, or to a directory with a project quota.
//
//	<dir>/<instance>/disk.img   the file system, holding upper/ and work/; a directory disk/ when there is no quota
//	<dir>/<instance>/bounded    the directory with a project quota, instead of the file
//	<dir>/<instance>/rootfs     the merged tree, owned by the instance's id range
//
// While mounting, the file system or directory is at disk/ and the id-mapped image at lower/.
// The overlay keeps its own references to both, so these mounts go away again: one
// mount an instance remains, and unmounting it releases the loop device as well.
// Mounts are made in the process's mount namespace, where a container's start
// finds them.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

const (
	diskDir  = "disk"
	lowerDir = "lower"
)

// Backend implements storage.Backend. A copy of a root disk shares the image with it: what is copied
// is the file with the instance's changes.
type Backend struct {
	*pool.FileRoots
}

var (
	_ storage.Backend  = (*Backend)(nil)
	_ storage.Runner   = (*Backend)(nil)
	_ storage.Devicer  = (*Backend)(nil)
	_ storage.Copier   = (*Backend)(nil)
	_ storage.Shrinker = (*Backend)(nil)
	_ storage.Layered  = (*Backend)(nil)
)

// New opens the root disks in dir, making it if needed, and tries out on a scratch
// directory what the kernel must be able to do: storage.ErrUnsupported says what is missing.
func New(ctx context.Context, dir string, o pool.FileOptions) (*Backend, error) {
	roots, err := pool.OpenFileRoots(dir, o)
	if err != nil {
		return nil, err
	}
	b := &Backend{roots}
	if err := b.probe(ctx); err != nil {
		return nil, fmt.Errorf("try overlay in %s: %w", dir, err)
	}
	return b, nil
}

// probe mounts an overlay with an id-mapped lower directory, as instances get it.
func (b *Backend) probe(ctx context.Context) (err error) {
	scratch, err := b.Pool.Scratch()
	if err != nil {
		return err
	}
	image := filepath.Join(scratch, "image")
	defer func() {
		err = errors.Join(err, mount.Detach(filepath.Join(scratch, pool.RootfsDir)), os.RemoveAll(scratch))
	}()
	if err := os.Mkdir(image, 0o700); err != nil {
		return err
	}
	return b.assemble(ctx, scratch, storage.Root{InstanceID: "probe", ImagePath: image, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}})
}

// Name implements storage.Backend.
func (b *Backend) Name() string { return "overlay" }

// Create implements storage.Backend. It only makes the file system; nothing is mounted.
func (b *Backend) Create(ctx context.Context, r storage.Root) error {
	if r.Nested {
		return fmt.Errorf("create root disk of %s: %w: a guest cannot mount an overlay on an overlay", r.InstanceID, storage.ErrUnsupported)
	}
	if info, err := os.Stat(r.ImagePath); err != nil || !info.IsDir() {
		return fmt.Errorf("create root disk of %s: image %s is not there", r.InstanceID, r.ImagePath)
	}
	return b.CreateBy(r, func(dir string) error {
		if r.SizeGB == 0 {
			return nil
		}
		return b.MakeDisk(ctx, dir, r.SizeGB)
	})
}

// Mount implements storage.Backend.
func (b *Backend) Mount(ctx context.Context, r storage.Root) (string, error) {
	return b.MountBy(r, func(have storage.Root, dir string) error {
		// What a crash in the middle left is no part of what is made now.
		err := errors.Join(mount.Unmount(ctx, filepath.Join(dir, lowerDir)), mount.Unmount(ctx, filepath.Join(dir, diskDir)))
		if err != nil {
			return err
		}
		return b.assemble(ctx, dir, have)
	})
}

// assemble makes the overlay at dir/rootfs.
func (b *Backend) assemble(ctx context.Context, dir string, r storage.Root) (err error) {
	for _, name := range []string{pool.RootfsDir, lowerDir, diskDir} {
		if err := mount.Point(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	disk, lower := filepath.Join(dir, diskDir), filepath.Join(dir, lowerDir)
	if r.SizeGB > 0 {
		if err := b.MountDisk(ctx, dir, disk, r.SizeGB); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, mount.Detach(disk)) }()
	}
	if err := makeUpper(disk, r); err != nil {
		return err
	}
	if err := mount.CloneIDMapped(r.ImagePath, lower, r.IDs, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Detach(lower)) }()
	return mount.New("overlay", filepath.Join(dir, pool.RootfsDir),
		mount.Option{Key: "source", Value: "compute-agent"},
		mount.Option{Key: "lowerdir", Value: lower},
		mount.Option{Key: "upperdir", Value: filepath.Join(disk, "upper")},
		mount.Option{Key: "workdir", Value: filepath.Join(disk, "work")},
		// Guests rename directories of the image; without redirects that fails with EXDEV.
		mount.Option{Key: "redirect_dir", Value: "on"},
		// The inode index would tie the changes to the inodes of one copy of the image.
		mount.Option{Key: "index", Value: "off"},
		mount.Option{Key: "metacopy", Value: "off"},
		// One device number for both layers, or `find -xdev` and `tar --one-file-system` stop short.
		mount.Option{Key: "xino", Value: "auto"})
}

// makeUpper makes the directory of the instance's changes. Its owner and mode are
// those of the merged root: the image's, moved to the instance's ids.
func makeUpper(disk string, r storage.Root) error {
	var st unix.Stat_t
	if err := unix.Stat(r.ImagePath, &st); err != nil {
		return fmt.Errorf("look at image %s: %w", r.ImagePath, err)
	}
	upper, work := filepath.Join(disk, "upper"), filepath.Join(disk, "work")
	if err := os.Mkdir(work, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("prepare disk: %w", err)
	}
	err := os.Mkdir(upper, 0o700)
	if errors.Is(err, os.ErrExist) {
		var have unix.Stat_t
		if err := unix.Stat(upper, &have); err != nil {
			return fmt.Errorf("prepare disk: %w", err)
		}
		if have.Uid != 0 { // complete: the owner is set last
			return nil
		}
		err = nil
	}
	if err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	if st.Uid >= r.IDs.Size || st.Gid >= r.IDs.Size {
		return fmt.Errorf("prepare disk: the image's root belongs to %d:%d, beyond the %d ids of the instance", st.Uid, st.Gid, r.IDs.Size)
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	if err := os.Chown(upper, int(r.IDs.Base+st.Uid), int(r.IDs.Base+st.Gid)); err != nil {
		return fmt.Errorf("prepare disk: %w", err)
	}
	return nil
}
