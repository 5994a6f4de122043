package compute

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// usedOf is how many bytes are in use on the file system of a directory.
func usedOf(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("read size of %s: %w", dir, err)
	}
	return (st.Blocks - st.Bfree) * uint64(st.Bsize), nil //nolint:gosec // positive
}

// isFull tells that a disk has no room. An ext4 file system in a sparse file on a full one cannot
// be written to, which the kernel reports as EIO.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO)
}
