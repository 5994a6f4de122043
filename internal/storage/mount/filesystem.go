package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// copyReserve is what a copy leaves free on the host: guests write meanwhile.
const copyReserve = 1 << 30

// types are the file systems that Type knows, by their magic numbers (statfs(2)).
var types = map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs"}

// Type is the name of the file system that path is on; "": it is another one, or there is nothing.
func Type(path string) (string, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	return types[int64(st.Type)], nil //nolint:unconvert // 32 bits on some architectures
}

// Supported tells whether the kernel has a type of file system, or a module of it to load.
func Supported(fstype string) (bool, error) {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false, fmt.Errorf("list file systems: %w", err)
	}
	for line := range strings.Lines(string(known)) {
		if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == fstype {
			return true, nil
		}
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return false, fmt.Errorf("read kernel release: %w", err)
	}
	aliases, err := os.ReadFile(filepath.Join("/lib/modules", unix.ByteSliceToString(kernel.Release[:]), "modules.alias"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return hasAlias(aliases, fstype), err
}

// hasAlias finds the module that mount(2) would load (fs/filesystems.c:get_fs_type). Its name may be another: overlay's
// was overlayfs, and its directory still is.
func hasAlias(aliases []byte, fstype string) bool {
	return bytes.Contains(append([]byte("\n"), aliases...), []byte("\nalias fs-"+fstype+" "))
}

// CheckRoom refuses a copy of that many bytes to the file system of target that would not leave enough room: storage.ErrNoSpace.
func CheckRoom(target *os.File, need int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(target.Fd()), &fs); err != nil {
		return fmt.Errorf("look at file system: %w", err)
	}
	free := int64(fs.Bavail) * fs.Bsize //nolint:gosec // far below 2^63
	if free-need < copyReserve {
		return fmt.Errorf("%w: a copy of %d bytes does not leave %d of %d free", storage.ErrNoSpace, need, copyReserve, free)
	}
	return nil
}

// Sync writes to disk what the file system mounted at path still has in memory.
func Sync(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open file system: %w", err)
	}
	defer dir.Close() //nolint:errcheck // only read
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("write back file system at %s: %w", path, err)
	}
	return nil
}
