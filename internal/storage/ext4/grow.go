package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

const (
	checker = "/sbin/e2fsck"
	resizer = "/sbin/resize2fs"
	// growTimeout: the check before an offline resize reads every table of the file system.
	growTimeout = 10 * time.Minute
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
	if err := extend(path, sizeGB); err != nil {
		return err
	}
	loop, err := attached(path)
	if err != nil {
		return err
	}
	if loop == nil {
		return growOffline(ctx, path)
	}
	defer loop.Close() //nolint:errcheck // nothing was written
	// The device keeps its size until it is told.
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("tell %s its new size: %w", loop.Name(), err)
	}
	fs, err := mount.Detached("ext4", options(loop)...)
	if err != nil {
		return err
	}
	defer fs.Close() //nolint:errcheck // nothing was written
	return growOnline(fs, path, sizeGB)
}

func growOnline(fs *os.File, path string, sizeGB int) error {
	dir, err := unix.Openat(int(fs.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open file system of %s: %w", path, err)
	}
	defer unix.Close(dir)                                                                                    //nolint:errcheck // nothing was written
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

// growOffline fits the file system to its file. resize2fs wants it checked.
func growOffline(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, growTimeout)
	defer cancel()
	err := run(ctx, checker, "-f", "-p", "--", path)
	if status, ok := errors.AsType[*exec.ExitError](err); ok && status.ExitCode() == checkFixed {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("check file system: %w", err)
	}
	if err := run(ctx, resizer, path); err != nil {
		return fmt.Errorf("grow file system: %w", full(path, err))
	}
	return nil
}

// run executes one of e2fsprogs' programs.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/sbin:/usr/bin:/bin"}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing (package e2fsprogs)", storage.ErrUnsupported, program)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// extend makes the sparse file at least that large.
func extend(path string, sizeGB int) error {
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
