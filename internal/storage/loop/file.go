package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

const (
	// nearlyNothing is less than what mkfs writes into a new disk.
	nearlyNothing = 8 << 20
	// ioctlShutdown is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, _IOR('X', 125, __u32).
	ioctlShutdown = 0x8004587d
	// goingNoLogFlush makes it drop everything that is not on disk (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h).
	goingNoLogFlush = 2
)

// Create makes the sparse file path of sizeGB GiB, and format a file system in it. Nothing is
// left behind when it fails.
func Create(path string, sizeGB int, format func() error) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := file.Truncate(int64(sizeGB) << 30); err != nil {
		return fmt.Errorf("size disk: %w", err)
	}
	if err := format(); err != nil {
		return fmt.Errorf("make file system: %w", Full(path, err))
	}
	return nil
}

// Extend makes the sparse file at least that large.
func Extend(path string, sizeGB int) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open disk: %w", err)
	}
	defer file.Close() //nolint:errcheck // Truncate has told
	info, err := file.Stat()
	if err == nil && info.Size() < int64(sizeGB)<<30 {
		err = file.Truncate(int64(sizeGB) << 30)
	}
	if err != nil {
		return fmt.Errorf("size disk: %w", err)
	}
	return nil
}

// Full tells of a program that failed on a file whether the host's disk was full: its exit
// status does not.
func Full(path string, failure error) error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &st); err == nil && st.Bavail*uint64(st.Bsize) < nearlyNothing { //nolint:gosec // positive
		return fmt.Errorf("%w: %w", failure, unix.ENOSPC)
	}
	return failure
}

// Run executes a program of a package that makes file systems.
func Run(ctx context.Context, inPackage, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/sbin:/usr/bin:/bin"}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing (package %s)", storage.ErrUnsupported, program, inPackage)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", filepath.Base(program), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Shutdown stops a file system on a loop device without writing what is dirty: for a disk that is
// about to be removed, whose unmounting would otherwise write gigabytes for nothing.
func Shutdown(loop *os.File, fstype string, options ...mount.Option) error {
	return With(loop, fstype, options, func(dir int) error {
		if err := unix.IoctlSetPointerInt(dir, ioctlShutdown, goingNoLogFlush); err != nil {
			return fmt.Errorf("shut down file system on %s: %w", loop.Name(), err)
		}
		return nil
	})
}

// With opens the root directory of the file system on a loop device, wherever else it is mounted.
func With(loop *os.File, fstype string, options []mount.Option, do func(dir int) error) error {
	fs, err := mount.Detached(fstype, options...)
	if err != nil {
		return err
	}
	defer fs.Close() //nolint:errcheck // nothing was written
	dir, err := unix.Openat(int(fs.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open file system on %s: %w", loop.Name(), err)
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written
	return do(dir)
}
