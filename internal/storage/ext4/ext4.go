// Package ext4 keeps a disk of a fixed size in a sparse file: an ext4 file
// system on a loop device that vanishes with its mount.
package ext4

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

const (
	// Program is where mkfs.ext4 is on every distribution with a merged /usr, and on Debian before.
	Program = "/sbin/mkfs.ext4"
	// tools is the package of the programs used here.
	tools = "e2fsprogs"
	// mkfsTimeout is for a host that is swamped; it takes 10 ms otherwise.
	mkfsTimeout = 30 * time.Second
	// blockSize is that of the file systems made here.
	blockSize = 4096
	// minBytesPerInode is mkfs's own lower bound (e2fsprogs misc/mke2fs.c: EXT2_MIN_BLOCK_SIZE).
	minBytesPerInode = 1024
)

// Format says which file system is made.
type Format struct {
	SizeGB      int
	InodesPerGB int    // files and directories that fit in a GiB, also of what Grow adds; 0: mkfs's default of 65536
	Label       string // at most 16 bytes
}

// Create makes the sparse file path with an empty file system.
// Nothing is left behind when it fails.
func Create(ctx context.Context, path string, f Format) error {
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
	return loop.Create(path, f.SizeGB, func() error { return loop.Run(ctx, tools, Program, append(args, "--", path)...) })
}

// Mount mounts the file system in the file at target, grown to sizeGB first if an earlier Grow was
// cut off. The loop device is released by the kernel when the file system is no longer mounted anywhere.
func Mount(ctx context.Context, path, target string, sizeGB int) error {
	if err := Grow(ctx, path, sizeGB); err != nil {
		return err
	}
	device, err := loop.Attach(path)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	return mount.New("ext4", target, options(device)...)
}

// MountIDMapped mounts as Mount does, with the file system's ids mapped to the range.
func MountIDMapped(ctx context.Context, path, target string, sizeGB int, ids storage.IDRange) error {
	if err := Grow(ctx, path, sizeGB); err != nil {
		return err
	}
	fs, err := Open(path)
	if err != nil {
		return err
	}
	defer fs.Close() //nolint:errcheck // nothing was written
	return mount.AttachIDMapped(fs, target, ids)
}

// options: noinit_itable, or the kernel would write the tables that were left out;
// discard, so that what the guest deletes is given back to the host.
func options(device *os.File) []mount.Option {
	return []mount.Option{{Key: "source", Value: device.Name()}, {Key: "noinit_itable"}, {Key: "discard"}, {Key: "errors", Value: "remount-ro"}}
}

// Healthy tells that the file system in the file is mounted, and that the kernel has met no error in it.
func Healthy(path string) (bool, error) {
	device, err := loop.Attached(path)
	if err != nil || device == nil {
		return false, err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	count, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device.Name()), "errors_count"))
	if errors.Is(err, fs.ErrNotExist) { // the device has the file, and nothing has the device
		return false, nil
	}
	return string(count) == "0\n", err
}

// Shutdown stops the file system in the file, if it is mounted, without writing
// what is dirty.
func Shutdown(path string) error {
	device, err := loop.Attached(path)
	if err != nil || device == nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	return loop.Shutdown(device, "ext4", options(device)...)
}
