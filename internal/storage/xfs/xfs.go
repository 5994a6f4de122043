// Package xfs keeps a disk of a fixed size in a sparse file: an XFS file
// system on a loop device that vanishes with its mount.
package xfs

import (
	"context"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

const (
	// Program is where mkfs.xfs is.
	Program = "/sbin/mkfs.xfs"
	// tools is the package of the programs used here.
	tools = "xfsprogs"
	// mkfsTimeout is for a host that is swamped; it takes 20 ms otherwise.
	mkfsTimeout = 30 * time.Second
	// ioctlGrow is XFS_IOC_FSGROWFSDATA, _IOW('X', 110, struct xfs_growfs_data).
	ioctlGrow = 0x4010586e
	// blockSize is mkfs.xfs's default, which is given nevertheless.
	blockSize = 4096
	// maxInodePercent is mkfs.xfs's default for file systems below 1 TiB.
	maxInodePercent = 25
)

// Create makes the sparse file path with an empty file system. Nothing is left behind when it fails.
func Create(ctx context.Context, path string, sizeGB int, label string) error {
	ctx, cancel := context.WithTimeout(ctx, mkfsTimeout)
	defer cancel()
	return loop.Create(path, sizeGB, func() error {
		return loop.Run(ctx, tools, Program, "-q", "-f", "-K", "-b", fmt.Sprintf("size=%d", blockSize), "-L", label, "--", path)
	})
}

// Mount mounts the file system in the file at target, grown to sizeGB if it is not that large.
func Mount(path, target string, sizeGB int) error {
	device, err := loop.Attach(path)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	if err := mount.New("xfs", target, options(device)...); err != nil {
		return err
	}
	return Grow(path, sizeGB)
}

func options(device *os.File) []mount.Option {
	return []mount.Option{{Key: "source", Value: device.Name()}, {Key: "discard"}}
}

// Grow makes the file and the file system in it larger, mounted or not: XFS grows only while it is mounted,
// so one that is not is mounted for the moment.
func Grow(path string, sizeGB int) error {
	if err := loop.Extend(path, sizeGB); err != nil {
		return err
	}
	device, err := loop.Attach(path)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	if err := loop.Refresh(device); err != nil {
		return err
	}
	return loop.With(device, "xfs", options(device), func(dir int) error {
		grow := struct { // fs/xfs/libxfs/xfs_fs.h:xfs_growfs_data
			newBlocks  uint64
			maxPercent uint32
			_          uint32
		}{uint64(sizeGB) << 30 / blockSize, maxInodePercent, 0} //nolint:gosec // positive
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dir), ioctlGrow, uintptr(unsafe.Pointer(&grow))) //nolint:gosec // the ioctl takes a pointer
		if errno != 0 {
			return fmt.Errorf("grow file system of %s to %d GiB: %w", path, sizeGB, errno)
		}
		return nil
	})
}

// Shutdown stops the file system in the file, if it is mounted, without writing what is dirty.
func Shutdown(path string) error {
	device, err := loop.Attached(path)
	if err != nil || device == nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	return loop.Shutdown(device, "xfs", options(device)...)
}
