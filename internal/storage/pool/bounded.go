package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/prjquota"
	"github.com/compute-agent/compute-agent/internal/storage/treecopy"
)

// A root disk with a project quota is a directory of the pool's own file system, where one of a file has DiskFile. That it is
// there says which of the two a root disk is, whatever is made by now. It is not for guests to come to by this name, but by
// the mount that a back end makes.

const (
	// boundedDir is the directory with a project quota, in its instance's directory.
	boundedDir = "bounded"
	// defaultInodes is what mkfs.ext4 gives a GiB (e2fsprogs misc/mke2fs.conf: inode_ratio 16384).
	defaultInodes = 65536
)

func isBounded(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, boundedDir))
	return err == nil
}

// probe makes and removes a directory with a quota, as instances get it.
func (b *FileRoots) probe() error {
	if err := prjquota.Check(b.Pool.path()); err != nil {
		return fmt.Errorf("%w; mount it with prjquota, or set [lxc] root_disk_quota = file", err)
	}
	scratch, err := b.Pool.Scratch()
	if err != nil {
		return err
	}
	err = prjquota.Make(filepath.Join(scratch, boundedDir), b.limit(1))
	return errors.Join(err, removeDisk(scratch, os.RemoveAll))
}

// limit is that of a size. There is one of inodes always: the pool's are all guests'.
func (b *FileRoots) limit(sizeGB int) prjquota.Limit {
	inodes := b.o.InodesPerGB
	if inodes == 0 {
		inodes = defaultInodes
	}
	return prjquota.Limit{Bytes: uint64(sizeGB) << 30, Inodes: uint64(sizeGB) * uint64(inodes)} //nolint:gosec // positive
}

func (b *FileRoots) setLimit(dir string, sizeGB int) error {
	return prjquota.Set(filepath.Join(dir, boundedDir), b.limit(sizeGB))
}

// lowerLimit refuses what would not fit.
func (b *FileRoots) lowerLimit(dir string, sizeGB int) error {
	used, _, err := prjquota.Look(filepath.Join(dir, boundedDir))
	if err != nil {
		return err
	}
	if l := b.limit(sizeGB); used.Bytes > l.Bytes || used.Inodes > l.Inodes {
		return fmt.Errorf("%w: %d bytes in %d files", storage.ErrTooSmall, used.Bytes, used.Inodes)
	}
	return b.setLimit(dir, sizeGB)
}

// Settle ends the filling of a root disk that is mounted. In a directory with a quota ext4 lets the agent write beyond
// it, as it has CAP_SYS_RESOURCE (fs/quota/dquot.c:ignore_hardlimit): storage.ErrNoSpace says so now. And nothing forces to disk
// what is in it, as the unmounting of a file system does, while its name may be there after a power cut.
func (b *FileRoots) Settle(dir string) error {
	if !isBounded(dir) {
		return nil
	}
	path := filepath.Join(dir, boundedDir)
	used, limit, err := prjquota.Look(path)
	if err != nil {
		return err
	}
	if used.Bytes > limit.Bytes || used.Inodes > limit.Inodes {
		return fmt.Errorf("%w: %d bytes in %d files are beyond a root disk of %d and %d: %w",
			storage.ErrNoSpace, used.Bytes, used.Inodes, limit.Bytes, limit.Inodes, unix.EDQUOT)
	}
	return mount.Sync(path)
}

// copyBounded copies the root disk in source to one that it makes in target.
func (b *FileRoots) copyBounded(ctx context.Context, source, target string, sizeGB int) error {
	from, to := filepath.Join(source, boundedDir), filepath.Join(target, boundedDir)
	used, _, err := prjquota.Look(from)
	if err != nil {
		return err
	}
	pool, err := os.Open(target)
	if err != nil {
		return err
	}
	defer pool.Close()                                               //nolint:errcheck // only read
	if err := mount.CheckRoom(pool, int64(used.Bytes)); err != nil { //nolint:gosec // below the pool's size
		return err
	}
	if err := prjquota.Make(to, b.limit(sizeGB)); err != nil {
		return err
	}
	return treecopy.CopyLayer(ctx, from, to)
}

// removeDisk takes a discarded directory away: the part with a quota first, the rest by remove.
func removeDisk(dir string, remove func(dir string) error) error {
	if err := prjquota.Remove(filepath.Join(dir, boundedDir)); err != nil {
		return err
	}
	return remove(dir)
}
