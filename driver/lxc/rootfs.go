package lxc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// inspectRootFS finds out whether the ids of the root file system are shifted already
// (its owner is in the guest's range) or liblxc has to, and which block device is below it.
// A root file system that is not mounted yet is looked at again at the start.
func (p *plan) inspectRootFS() error {
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
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer mounts.Close()
	upper, err := overlayUpper(mounts, p.RootFS)
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if upper != "" {
		err := unix.Stat(upper, &st)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // mounted where nobody sees it any more: the device below stays unknown
		}
		if err != nil {
			return fmt.Errorf("look at upper directory of %s: %w", p.RootFS, err)
		}
	}
	p.device = wholeDisk(uint64(st.Dev))
	return nil
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
