package lxc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// inspectRootFS finds out whether the ids of the root file system are shifted already
// (its owner is in the guest's range) or liblxc has to. A root file system that is not
// mounted yet is looked at again at the start.
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

// resolveBinds follows the symbolic links in the places of binds, as the guest would: liblxc
// refuses them, and in an image /mnt may well be one (utils.c:safe_mount). The guest does not run.
func (p *plan) resolveBinds() error {
	if len(p.Spec.Binds) == 0 {
		return nil
	}
	root, err := unix.Open(p.RootFS, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not mounted yet: looked at again at the start
	}
	if err != nil {
		return fmt.Errorf("open root file system %s: %w", p.RootFS, err)
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	binds := slices.Clone(p.Spec.Binds)
	for i, b := range binds {
		place, err := resolveIn(root, b.Target)
		if err != nil {
			return fmt.Errorf("find /%s in the root file system: %w", b.Target, err)
		}
		binds[i].Target = place
	}
	p.Spec.Binds = binds
	return nil
}

// kernelDirs are where nothing of an image's choice may cover what confines the guest.
var kernelDirs = []string{"proc", "sys", "dev"}

// resolveIn gives a path below root without symbolic links. What does not exist yet is appended to its parent.
func resolveIn(root int, path string) (string, error) {
	fd, err := openIn(root, path, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) {
		if filepath.Dir(path) == "." {
			return path, nil
		}
		parent, err := resolveIn(root, filepath.Dir(path))
		return filepath.Join(parent, filepath.Base(path)), err
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	var names [2]string
	for i, f := range []int{root, fd} {
		if names[i], err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f)); err != nil {
			return "", err
		}
	}
	below, err := filepath.Rel(names[0], names[1])
	if first, _, _ := strings.Cut(below, "/"); err == nil && slices.Contains(kernelDirs, first) {
		err = fmt.Errorf("it leads to %q, where the kernel's files are", below)
	}
	if err == nil && (below == "." || strings.HasPrefix(below, "..") || !plainPath("/"+below)) {
		err = fmt.Errorf("it leads to %q", below)
	}
	return below, err
}
