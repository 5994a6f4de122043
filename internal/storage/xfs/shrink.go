package xfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/treecopy"
)

const (
	// shrinkTimeout: everything in the file system is copied.
	shrinkTimeout = 2 * time.Hour
	newSuffix     = ".new"
)

// Shrink makes the disk smaller. XFS itself cannot become smaller, so what is in it goes to a new one, which takes its
// place when it is complete. It must not be mounted. storage.ErrTooSmall: its content does not fit, and it stays as it is.
func Shrink(ctx context.Context, path string, sizeGB int, label string) error {
	ctx, cancel := context.WithTimeout(ctx, shrinkTimeout)
	defer cancel()
	device, err := loop.Attached(path)
	if err != nil {
		return err
	}
	if device != nil {
		_ = device.Close()
		return fmt.Errorf("%w: %s is mounted", storage.ErrBusy, path)
	}
	smaller := path + newSuffix
	if err := os.Remove(smaller); err != nil && !errors.Is(err, os.ErrNotExist) { // of an attempt that was cut off
		return fmt.Errorf("remove half a copy: %w", err)
	}
	if err := Create(ctx, smaller, sizeGB, label); err != nil {
		return err
	}
	err = copyAll(ctx, path, smaller)
	if err == nil {
		err = os.Rename(smaller, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("shrink file system: %w", err), os.Remove(smaller))
	}
	return nil
}

// copyAll copies what is in one file system to another one, which is on disk then.
func copyAll(ctx context.Context, from, to string) error {
	err := with(from, func(source int) error {
		return with(to, func(target int) error {
			// The dot, because a descriptor's own path is a link.
			err := treecopy.Copy(ctx, fmt.Sprintf("/proc/self/fd/%d/.", source), fmt.Sprintf("/proc/self/fd/%d/.", target), treecopy.AsIs)
			if err == nil {
				err = unix.Syncfs(target)
			}
			return err
		})
	})
	if errors.Is(err, unix.ENOSPC) { // of the new file system; a full host is EIO
		err = fmt.Errorf("%w: %w", storage.ErrTooSmall, err)
	}
	if err != nil {
		return err
	}
	file, err := os.Open(to)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// with opens the root directory of the file system in a file.
func with(path string, do func(dir int) error) error {
	device, err := loop.Attach(path)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	return loop.With(device, "xfs", options(device), do)
}
