package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// KeepsLayers implements storage.Layered.
func (b *Backend) KeepsLayers(storage.Root) bool { return true }

// Layer implements storage.Layered: the upper directory, reached through a mount of the file system that has
// no place in the tree of mounts and so goes away with this process at the latest.
func (b *Backend) Layer(_ context.Context, instanceID string) (string, func() error, error) {
	r, err := b.Pool.Get(instanceID)
	if err != nil {
		return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
	}
	disk, done := b.Pool.Path(instanceID, diskDir), func() error { return nil }
	if r.SizeGB > 0 {
		if disk, done, err = b.OpenDisk(instanceID); err != nil {
			return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
		}
	} else if err := mount.Point(disk); err != nil {
		return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
	}
	if err := makeUpper(disk, r); err != nil {
		_ = done()
		return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
	}
	upper := filepath.Join(disk, "upper")
	if _, err := os.Stat(upper); err != nil {
		_ = done()
		return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
	}
	return upper, done, nil
}
