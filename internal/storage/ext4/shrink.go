package ext4

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
)

// Shrink makes the file system in the file, and then the file, smaller. It must not be mounted: ext4 shrinks only so.
// storage.ErrTooSmall: its content would not fit, and it stays as it is.
func Shrink(ctx context.Context, path string, sizeGB int) error {
	device, err := loop.Attached(path)
	if err != nil {
		return err
	}
	if device != nil {
		_ = device.Close()
		return fmt.Errorf("%w: %s is mounted", storage.ErrBusy, path)
	}
	have, err := sizeOf(path)
	if err != nil {
		return err
	}
	if have > int64(sizeGB)<<30 {
		if err := shrinkOffline(ctx, path, sizeGB); err != nil {
			return err
		}
	}
	if err := os.Truncate(path, int64(sizeGB)<<30); err != nil {
		return fmt.Errorf("size disk: %w", err)
	}
	return nil
}

// shrinkOffline moves what lies beyond the new end. resize2fs looks whether it fits before it begins.
func shrinkOffline(ctx context.Context, path string, sizeGB int) error {
	ctx, cancel := context.WithTimeout(ctx, resizeTimeout)
	defer cancel()
	if err := check(ctx, path); err != nil {
		return err
	}
	err := loop.Run(ctx, tools, resizer, path, strconv.Itoa(sizeGB)+"G")
	if now, sizeErr := sizeOf(path); err != nil && sizeErr == nil && now > int64(sizeGB)<<30 && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", storage.ErrTooSmall, err)
	}
	if err != nil {
		return fmt.Errorf("shrink file system: %w", err)
	}
	return nil
}
