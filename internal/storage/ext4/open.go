package ext4

import (
	"os"

	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// Open mounts the file system in the file apart from the tree of mounts: it is reached through the
// descriptor, /proc/self/fd/N being its root, and the mount ends when that is closed. The file system may
// be mounted elsewhere, too.
func Open(path string) (*os.File, error) {
	device, err := loop.Attach(path)
	if err != nil {
		return nil, err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	return mount.Detached("ext4", options(device)...)
}
