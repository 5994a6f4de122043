package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
)

const (
	// ioctlResize is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
	ioctlResize = 0x40086610

	checker = "/sbin/e2fsck"
	resizer = "/sbin/resize2fs"
	// resizeTimeout: the check before an offline resize reads every table of the file system.
	resizeTimeout = 10 * time.Minute
	// checkFixed is e2fsck's exit status for errors that it corrected, such as a journal to replay.
	checkFixed = 1
)

// Grow makes the file and the file system in it larger: at once where it is mounted, which needs
// CAP_SYS_RESOURCE (fs/ext4/resize.c:ext4_resize_begin), with resize2fs where it is not.
func Grow(ctx context.Context, path string, sizeGB int) error {
	have, err := sizeOf(path)
	if err != nil {
		return err
	}
	if have >= int64(sizeGB)<<30 {
		return nil
	}
	if err := loop.Extend(path, sizeGB); err != nil {
		return err
	}
	device, err := loop.Attached(path)
	if err != nil {
		return err
	}
	if device == nil {
		return growOffline(ctx, path)
	}
	defer device.Close() //nolint:errcheck // nothing was written
	if err := loop.Refresh(device); err != nil {
		return err
	}
	return loop.With(device, "ext4", options(device), func(dir int) error { return growOnline(dir, path, sizeGB) })
}

func growOnline(dir int, path string, sizeGB int) error {
	blocks := uint64(sizeGB) << 30 / blockSize                                                               //nolint:gosec // positive
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dir), ioctlResize, uintptr(unsafe.Pointer(&blocks))) //nolint:gosec // the ioctl takes a pointer
	if errors.Is(errno, unix.EPERM) {
		return fmt.Errorf("%w: grow the mounted file system of %s: the agent lacks CAP_SYS_RESOURCE, or the file system has errors; it grows when it is mounted next: %w",
			storage.ErrBusy, path, errno)
	}
	if errno != 0 {
		return fmt.Errorf("grow file system of %s to %d GiB: %w", path, sizeGB, errno)
	}
	return nil
}

// growOffline fits the file system to its file.
func growOffline(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, resizeTimeout)
	defer cancel()
	if err := check(ctx, path); err != nil {
		return err
	}
	if err := loop.Run(ctx, tools, resizer, path); err != nil {
		return fmt.Errorf("grow file system: %w", loop.Full(path, err))
	}
	return nil
}

// check makes a file system that is not mounted consistent; resize2fs wants it so.
func check(ctx context.Context, path string) error {
	err := loop.Run(ctx, tools, checker, "-f", "-p", "--", path)
	if status, ok := errors.AsType[*exec.ExitError](err); ok && status.ExitCode() == checkFixed {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check file system: %w", err)
	}
	return nil
}

// Places in the superblock (fs/ext4/ext4.h:struct ext4_super_block).
const (
	superOffset, superSize = 1024, 1024
	superBlocksLow         = 0x4
	superLogBlockSize      = 0x18
	superMagic             = 0x38
	superBlocksHigh        = 0x150
	magic                  = 0xef53
)

// sizeOf reads the file system's size in bytes.
func sizeOf(path string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("open disk: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	super := make([]byte, superSize)
	if _, err := file.ReadAt(super, superOffset); err != nil {
		return 0, fmt.Errorf("read superblock of %s: %w", path, err)
	}
	le := binary.LittleEndian
	if le.Uint16(super[superMagic:]) != magic || le.Uint32(super[superLogBlockSize:]) > 6 {
		return 0, fmt.Errorf("read superblock of %s: no ext4 file system", path)
	}
	blocks := uint64(le.Uint32(super[superBlocksLow:])) | uint64(le.Uint32(super[superBlocksHigh:]))<<32
	return int64(blocks << (10 + le.Uint32(super[superLogBlockSize:]))), nil //nolint:gosec // made here, of a size in GiB
}
