package ext4

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// ioctlShutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32).
	ioctlShutdown = 0x8004587d
	// ioctlResize is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
	ioctlResize = 0x40086610
	// loopAttempts bounds the race for a free device with other programs.
	loopAttempts = 64
	// sectorSize is the block size that the guest's file system sees.
	sectorSize = 512
)

// attach gives a loop device of the file: the one it has, since two would be two
// caches of one file system, or a new one. The device is released by the kernel
// when the returned file is closed and nothing has it mounted.
func attach(path string) (*os.File, error) {
	if loop, err := attached(path); loop != nil || err != nil {
		return loop, err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	defer file.Close() //nolint:errcheck // the loop device has its own
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: no loop devices: %w", storage.ErrUnsupported, err)
	}
	defer control.Close() //nolint:errcheck // nothing was written
	config := unix.LoopConfig{
		Fd:   uint32(file.Fd()), //nolint:gosec // descriptors are small
		Size: sectorSize,
		// Direct: the guest's file system caches, the host's need not do so again.
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO},
	}
	copy(config.Info.File_name[:unix.LO_NAME_SIZE-1], path)
	for range loopAttempts {
		index, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", index), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to %s: %w", path, loop.Name(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: other programs took every loop device in %d attempts", path, loopAttempts)
}

// attached finds the loop device that has the file already; nil: none.
func attached(path string) (*os.File, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	for _, b := range backing {
		name, err := os.ReadFile(b)
		if err != nil || strings.TrimSuffix(string(name), "\n") != path {
			continue // released since, or another file's
		}
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(b)))
		loop, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		// It may have been given to another file between the look and the open.
		again, err := os.ReadFile(b)
		if err == nil && string(again) == string(name) {
			return loop, nil
		}
		_ = loop.Close()
	}
	return nil, nil //nolint:nilnil // no device is an answer
}
