package overlay

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

var _ storage.Copier = (*Backend)(nil)

// Flush implements storage.Copier.
func (b *Backend) Flush(_ context.Context, instanceID string) error {
	if _, err := b.pool.Get(instanceID); err != nil {
		return fmt.Errorf("flush root disk: %w", err)
	}
	return ext4.Sync(b.pool.Path(instanceID, rootfsDir))
}

// Copy implements storage.Copier: the image below is shared, so only the instance's changes are
// copied. A root disk without a quota is a plain directory and is not copied.
func (b *Backend) Copy(ctx context.Context, from string, to storage.Root) error {
	return pool.CopyRoot(b.pool, from, to, func(dir string) error {
		// Through the overlay the file system below is reached, mounted or not.
		if err := ext4.Sync(b.pool.Path(from, rootfsDir)); err != nil {
			return err
		}
		return ext4.Copy(ctx, b.pool.Path(from, diskFile), filepath.Join(dir, diskFile))
	})
}
