// Package loop keeps file systems in files: loop devices that vanish with their mounts, and
// what is the same for every file system on them.
package loop

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
	// loopAttempts bounds the race for a free device with other programs.
	loopAttempts = 64
	// sectorSize is the block size that the guest's file system sees.
	sectorSize = 512
)

// Attach gives a loop device of the file: the one it has, since two would be two
// caches of one file system, or a new one. The device is released by the kernel
// when the returned file is closed and nothing has it mounted.
func Attach(path string) (*os.File, error) {
	if loop, err := Attached(path); loop != nil || err != nil {
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

// Attached finds the loop device that has the file already; nil: none.
func Attached(path string) (*os.File, error) {
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

// Number is the "major:minor" of the loop device that has the file; "": none has it.
func Number(path string) (string, error) {
	loop, err := Attached(path)
	if err != nil || loop == nil {
		return "", err
	}
	defer loop.Close() //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(int(loop.Fd()), &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", loop.Name(), err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// Refresh tells the loop device that has the file of the file's new size.
func Refresh(loop *os.File) error {
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("tell %s its new size: %w", loop.Name(), err)
	}
	return nil
}
