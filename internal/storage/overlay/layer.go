package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

var (
	_ storage.Layered  = (*Backend)(nil)
	_ storage.Shrinker = (*Backend)(nil)
)

// Layer implements storage.Layered: the upper directory, reached through a mount of the file system that has
// no place in the tree of mounts and so goes away with this process at the latest.
func (b *Backend) Layer(_ context.Context, instanceID string) (string, func() error, error) {
	r, err := b.pool.Get(instanceID)
	if err != nil {
		return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
	}
	disk, done := b.pool.Path(instanceID, diskDir), func() error { return nil }
	if r.SizeGB > 0 {
		fs, err := ext4.Open(b.pool.Path(instanceID, diskFile))
		if err != nil {
			return "", nil, fmt.Errorf("open layer of %s: %w", instanceID, err)
		}
		disk, done = fmt.Sprintf("/proc/self/fd/%d", fs.Fd()), fs.Close
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

// Shrink implements storage.Shrinker.
func (b *Backend) Shrink(ctx context.Context, instanceID string, sizeGB int) error {
	return pool.ShrinkRoot(b.pool, instanceID, sizeGB, func() error { return ext4.Shrink(ctx, b.pool.Path(instanceID, diskFile), sizeGB) })
}
