package lxc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// inspectRootFS finds out whether the ids of the root file system are shifted already
// (its owner is in the guest's range) or liblxc has to, and, if it shall be throttled,
// which block device is below it. A root file system that is not mounted yet is looked
// at again at the start.
func (p *plan) inspectRootFS(ctx context.Context) error {
	var st unix.Stat_t
	err := unix.Stat(p.RootFS, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at root file system %s: %w", p.RootFS, err)
	}
	ids := p.Spec.IDs
	p.idmapRootFS = !p.Spec.Limits.Privileged && (st.Uid < ids.Base || st.Uid-ids.Base >= ids.Size)
	if p.Spec.Limits.Disk == (flavor.DiskLimits{}) {
		return nil
	}
	upper, err := overlayUpperOf(p.RootFS)
	if err != nil {
		return fmt.Errorf("find disk of %s: %w", p.RootFS, err)
	}
	if upper != "" {
		if err := unix.Stat(upper, &st); err != nil {
			return fmt.Errorf("find disk of %s: %w", p.RootFS, err)
		}
	}
	if p.device = wholeDisk(st.Dev); p.device == "" {
		reqctx.Log(ctx).WithField("rootfs", p.RootFS).Warning("no block device below the root disk, its limits are not enforced")
	}
	return nil
}

// enterable confirms that the root of a guest, nobody to the host, can walk down to its
// root file system.
func enterable(rootfs string, ids storage.IDRange) error {
	for dir := filepath.Dir(rootfs); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return err
		}
		if st.Mode&0o001 == 0 && (st.Uid != ids.Base || st.Mode&0o100 == 0) && (st.Gid != ids.Base || st.Mode&0o010 == 0) {
			return fmt.Errorf("the guest's root may not enter %s (chmod o+x)", dir)
		}
		if dir == "/" {
			return nil
		}
	}
}

func overlayUpperOf(path string) (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close() //nolint:errcheck // read only
	return overlayUpper(mounts, path)
}

// overlayUpper returns the upper directory if an overlay is mounted at path.
func overlayUpper(mountinfo io.Reader, path string) (string, error) {
	upper := ""
	s := bufio.NewScanner(mountinfo)
	s.Buffer(nil, 1<<20) // overlays of many layers have long options
	for s.Scan() {
		before, after, _ := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(g) < 3 || f[4] != path {
			continue
		}
		upper = "" // the last mount of a path is the one that is seen
		if g[0] != "overlay" {
			continue
		}
		for o := range strings.SplitSeq(g[2], ",") {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = dir
			}
		}
	}
	return upper, s.Err()
}

// wholeDisk turns a device number into "major:minor" of the disk that the kernel
// throttles; partitions are refused by it. Empty for file systems without a device.
func wholeDisk(dev uint64) string {
	number := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	dir, err := filepath.EvalSymlinks(filepath.Join("/sys/dev/block", number))
	if unix.Major(dev) == 0 || err != nil {
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
