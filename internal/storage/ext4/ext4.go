// Package ext4 keeps a root disk of a fixed size in a sparse file: an ext4 file
// system on a loop device that vanishes with its mount.
package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// mkfsTimeout is for a host that is swamped; it takes 10 ms otherwise.
const mkfsTimeout = 30 * time.Second

// minBytesPerInode is mkfs's own lower bound (e2fsprogs misc/mke2fs.c: EXT2_MIN_BLOCK_SIZE).
const minBytesPerInode = 1024

// nearlyNothing is less than what mkfs writes into a new disk.
const nearlyNothing = 8 << 20

// Program is where mkfs.ext4 is on every distribution with a merged /usr, and on Debian before.
const Program = "/sbin/mkfs.ext4"

// blockSize is that of the file systems made here.
const blockSize = 4096

// Format says which file system is made.
type Format struct {
	SizeGB      int
	InodesPerGB int    // files and directories that fit in a GiB, also of what Grow adds; 0: mkfs's default of 65536
	Label       string // at most 16 bytes
}

// Create makes the sparse file path with an empty file system.
// Nothing is left behind when it fails.
func Create(ctx context.Context, path string, f Format) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := file.Truncate(int64(f.SizeGB) << 30); err != nil {
		return fmt.Errorf("size disk: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, mkfsTimeout)
	defer cancel()
	// No blocks for root alone, since the guest's root is not the host's; the
	// tables are zero in a new sparse file and need not be written; the journal
	// is small, because its size is taken from the guest's.
	args := []string{
		"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-m", "0",
		"-J", "size=16", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
	}
	if f.InodesPerGB > 0 {
		args = append(args, "-i", strconv.Itoa(max(minBytesPerInode, (1<<30)/f.InodesPerGB)))
	}
	if f.Label != "" {
		args = append(args, "-L", f.Label)
	}
	if err := run(ctx, Program, append(args, "--", path)...); err != nil {
		return fmt.Errorf("make file system: %w", full(path, err))
	}
	return nil
}

// full tells of a failed program that the disk was full, if it was: its exit status does not.
func full(path string, failure error) error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &st); err == nil && st.Bavail*uint64(st.Bsize) < nearlyNothing { //nolint:gosec // positive
		return fmt.Errorf("%w: %w", failure, unix.ENOSPC)
	}
	return failure
}

// Mount mounts the file system in the file at target, grown to sizeGB first if an earlier Grow was
// cut off. The loop device is released by the kernel when the file system is no longer mounted anywhere.
func Mount(ctx context.Context, path, target string, sizeGB int) error {
	if err := Grow(ctx, path, sizeGB); err != nil {
		return err
	}
	loop, err := attach(path)
	if err != nil {
		return err
	}
	defer loop.Close() //nolint:errcheck // nothing was written
	return mount.New("ext4", target, options(loop)...)
}

// options: noinit_itable, or the kernel would write the tables that were left out;
// discard, so that what the guest deletes is given back to the host.
func options(loop *os.File) []mount.Option {
	return []mount.Option{{Key: "source", Value: loop.Name()}, {Key: "noinit_itable"}, {Key: "discard"}, {Key: "errors", Value: "remount-ro"}}
}

// goingNoLogFlush makes EXT4_IOC_SHUTDOWN drop everything that is not on disk (fs/ext4/ext4.h).
const goingNoLogFlush = 2

// Shutdown stops the file system in the file, if it is mounted, without writing
// what is dirty: for a disk that is about to be removed, whose unmounting would
// otherwise write gigabytes for nothing.
func Shutdown(path string) error {
	loop, err := attached(path)
	if err != nil || loop == nil {
		return err
	}
	defer loop.Close() //nolint:errcheck // nothing was written
	fs, err := mount.Detached("ext4", options(loop)...)
	if err != nil {
		return err
	}
	defer fs.Close() //nolint:errcheck // nothing was written
	dir, err := unix.Openat(int(fs.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open file system of %s: %w", path, err)
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written
	if err := unix.IoctlSetPointerInt(dir, ioctlShutdown, goingNoLogFlush); err != nil {
		return fmt.Errorf("shut down file system of %s: %w", path, err)
	}
	return nil
}
