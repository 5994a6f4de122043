package mount

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// Devices are the whole disks, shared with others, that the file system of path lies on: partitions
// cannot be throttled, and a btrfs may have several disks. None for one without a device.
func Devices(path string) ([]storage.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("find disk of %s: %w", path, err)
	}
	numbers := []string{fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))}
	if kind, err := Type(path); err != nil {
		return nil, err
	} else if kind == "btrfs" { // its device number is no device's
		if numbers, err = btrfsDevices(path); err != nil {
			return nil, err
		}
	}
	var devices []storage.Device
	for _, number := range numbers {
		d := storage.Device{Number: wholeDisk("/sys/dev/block", number)}
		if d.Number != "" && !slices.Contains(devices, d) {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// btrfsDevices are the "major:minor" of a btrfs' members.
func btrfsDevices(path string) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("find disks of %s: %w", path, err)
	}
	defer dir.Close() //nolint:errcheck // only read
	id, err := fileSystemID(int(dir.Fd()))
	if err != nil {
		return nil, fmt.Errorf("find disks of %s: %w", path, err)
	}
	files, err := filepath.Glob(filepath.Join("/sys/fs/btrfs", id, "devices/*/dev"))
	if err != nil {
		return nil, fmt.Errorf("find disks of %s: %w", path, err)
	}
	numbers := make([]string, 0, len(files))
	for _, f := range files {
		number, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("find disks of %s: %w", path, err)
		}
		numbers = append(numbers, string(bytes.TrimSpace(number)))
	}
	return numbers, nil
}

// fileSystemID is the UUID that sysfs names a btrfs by (BTRFS_IOC_FS_INFO: max_id, num_devices, fsid, …).
func fileSystemID(dir int) (string, error) {
	const ioctlInfo, offset = 0x8400941f, 16
	var info [1024]byte
	if err := ioctl(dir, ioctlInfo, &info); err != nil {
		return "", err
	}
	h := hex.EncodeToString(info[offset : offset+16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// wholeDisk turns "major:minor" into that of the disk that the kernel throttles; partitions are
// refused by it. Empty for file systems without a device. sysfs is /sys/dev/block.
func wholeDisk(sysfs, number string) string {
	dir, err := filepath.EvalSymlinks(filepath.Join(sysfs, number))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return number
	}
	parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(parent))
}
