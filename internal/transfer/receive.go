package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// receiver applies what it is sent below an open directory. Nothing there is used by a
// guest, but what was sent before is the guest's: no link is followed.
type receiver struct {
	root  int
	ids   storage.IDRange
	layer bool

	parent     int // the directory of the last entry, open; -1: none
	parentPath string
	buf        []byte // of a frame
}

func newReceiver(dir string, ids storage.IDRange, layer bool, buf []byte) (*receiver, error) {
	root, err := fdio.OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	return &receiver{root: root, ids: ids, layer: layer, parent: -1, buf: buf}, nil
}

func (r *receiver) close() {
	r.leave()
	if r.root >= 0 {
		_ = unix.Close(r.root)
	}
	r.root = -1
}

func (r *receiver) leave() {
	if r.parent >= 0 {
		_ = unix.Close(r.parent)
	}
	r.parent, r.parentPath = -1, ""
}

// sync forces everything to disk, and says so if something did not get there.
func (r *receiver) sync() error {
	if err := unix.Syncfs(r.root); err != nil {
		return fmt.Errorf("write disk: %w", err)
	}
	return nil
}

// apply makes one entry; its data is read from c.
func (r *receiver) apply(e *entry, c *codec) error {
	if err := checkPath(string(e.Path)); err != nil {
		return err
	}
	err := r.make(e, c)
	if err != nil {
		err = fmt.Errorf("receive %s: %w", e.Path, err)
	}
	return err
}

func (r *receiver) make(e *entry, c *codec) error {
	if e.Path == "." && e.Type != typeDir && e.Type != typeDirEnd {
		return fmt.Errorf("%w: the root is no directory", errFrame)
	}
	switch e.Type {
	case typeDir:
		return r.directory(e, c)
	case typeDirEnd:
		fd, err := r.open(string(e.Path))
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // a directory holds nothing back
		return r.finish(fd, e)
	case typeFile:
		return r.file(e, c)
	}
	dir, name, err := r.place(string(e.Path))
	if err != nil {
		return err
	}
	if err := removeAll(dir, name); err != nil {
		return err
	}
	switch e.Type {
	case typeLink:
		if err := unix.Symlinkat(string(e.Target), dir, name); err != nil {
			return err
		}
		return r.own(dir, name, e)
	case typeHard:
		return r.link(e, dir, name)
	case typeFIFO:
		if err := unix.Mknodat(dir, name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		if err := r.own(dir, name, e); err != nil {
			return err
		}
		return unix.Fchmodat(dir, name, e.Mode&0o7777, 0)
	case typeWhiteout:
		if !r.layer {
			break
		}
		return unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	}
	return fmt.Errorf("%w: an entry of type %q", errFrame, e.Type)
}

// place opens the directory that a path is in. It stays open for the next one.
func (r *receiver) place(full string) (dir int, name string, err error) {
	parent := path.Dir(full)
	if r.parent < 0 || r.parentPath != parent {
		r.leave()
		fd, err := r.open(parent)
		if err != nil {
			return -1, "", err
		}
		r.parent, r.parentPath = fd, parent
	}
	return r.parent, path.Base(full), nil
}

// open opens a directory below the root, and never through a link.
func (r *receiver) open(dir string) (int, error) {
	return unix.Openat2(r.root, dir, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func (r *receiver) directory(e *entry, c *codec) error {
	if e.Path != "." {
		dir, name, err := r.place(string(e.Path))
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := unix.Unlinkat(dir, name, 0); err != nil {
				return err
			}
			err = unix.ENOENT
		}
		if errors.Is(err, unix.ENOENT) {
			err = unix.Mkdirat(dir, name, 0o700)
		}
		if err != nil {
			return err
		}
	}
	if !e.Names {
		return nil
	}
	return r.prune(string(e.Path), c)
}

// prune removes what a directory does not name.
func (r *receiver) prune(full string, c *codec) error {
	keep := map[string]bool{}
	for {
		k, body, err := c.read(r.buf)
		if err != nil {
			return err
		}
		if k == kindEnd {
			break
		}
		if k != kindNames {
			return fmt.Errorf("%w: %q in a list of names", errFrame, k)
		}
		for name := range strings.SplitSeq(strings.TrimSuffix(string(body), "\x00"), "\x00") {
			keep[name] = true
		}
	}
	fd, err := r.open(full)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a directory holds nothing back
	have, err := fdio.ReadNames(fd)
	if err != nil {
		return err
	}
	for _, name := range have {
		if !keep[name] {
			r.leave() // it may be in what goes
			if err := removeAll(fd, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *receiver) file(e *entry, c *codec) error {
	dir, name, err := r.place(string(e.Path))
	if err != nil {
		return err
	}
	if err := removeAll(dir, name); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = r.content(fd, e, c)
	if err == nil {
		err = r.finish(fd, e)
	}
	return errors.Join(err, unix.Close(fd))
}

func (r *receiver) content(fd int, e *entry, c *codec) error {
	for {
		k, body, err := c.read(r.buf)
		if err != nil {
			return err
		}
		if k == kindEnd {
			return unix.Ftruncate(fd, e.Size)
		}
		if k != kindData || len(body) < 8 {
			return fmt.Errorf("%w: %q in a file", errFrame, k)
		}
		offset := int64(binary.BigEndian.Uint64(body)) //nolint:gosec // a negative one is refused
		if offset < 0 || offset+int64(len(body)-8) > e.Size {
			return fmt.Errorf("%w: data beyond the end of the file", errFrame)
		}
		if err := fdio.WriteAt(fd, body[8:], offset); err != nil {
			return err
		}
	}
}

func (r *receiver) link(e *entry, dir int, name string) error {
	if err := checkPath(string(e.Target)); err != nil {
		return err
	}
	from, err := r.open(path.Dir(string(e.Target)))
	if err != nil {
		return err
	}
	defer unix.Close(from) //nolint:errcheck // a directory holds nothing back
	return unix.Linkat(from, path.Base(string(e.Target)), dir, name, 0)
}

// own gives a name that cannot be opened its owner and time.
func (r *receiver) own(dir int, name string, e *entry) error {
	uid, gid, err := r.owner(e)
	if err == nil {
		err = unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.UtimesNanoAt(dir, name, times(e), unix.AT_SYMLINK_NOFOLLOW)
	}
	return err
}

func (r *receiver) owner(e *entry) (uid, gid int, err error) {
	u, err := toHost(e.UID, r.ids)
	if err != nil {
		return 0, 0, err
	}
	g, err := toHost(e.GID, r.ids)
	return int(u), int(g), err
}

func times(e *entry) []unix.Timespec {
	t := unix.NsecToTimespec(e.MTime)
	return []unix.Timespec{t, t}
}

// finish gives an open file or directory its attributes. The order matters: a change of
// owner clears setuid and capabilities, an access list changes the mode.
func (r *receiver) finish(fd int, e *entry) error {
	uid, gid, err := r.owner(e)
	if err == nil {
		err = unix.Fchown(fd, uid, gid)
	}
	if err == nil {
		err = r.xattrs(fd, e)
	}
	if err == nil {
		err = unix.Fchmod(fd, e.Mode&0o7777)
	}
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times(e), 0)
	}
	return err
}

func (r *receiver) xattrs(fd int, e *entry) error {
	for _, x := range e.Xattrs {
		name, value := string(x.Name), x.Value
		if !carried(name, r.layer) || len(value) > maxXattr {
			return fmt.Errorf("%w: attribute %q", errFrame, name)
		}
		if name == overlayPrefix+"redirect" {
			if err := checkRedirect(string(value)); err != nil {
				return err
			}
		}
		shifted, err := shiftXattr(name, value, func(id uint32) (uint32, error) { return toHost(id, r.ids) })
		if err == nil {
			err = unix.Fsetxattr(fd, name, shifted, 0)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return r.dropXattrs(fd, e)
}

// dropXattrs removes what a directory of an earlier pass had and has no more.
func (r *receiver) dropXattrs(fd int, e *entry) error {
	if e.Type != typeDirEnd {
		return nil // a file is always made anew
	}
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size == 0 {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		keep := slices.ContainsFunc(e.Xattrs, func(x xattr) bool { return string(x.Name) == name })
		if !keep && carried(name, r.layer) {
			if err := unix.Fremovexattr(fd, name); err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
	}
	return nil
}

// checkPath refuses what is no clean path below the root.
func checkPath(p string) error {
	if p == "." {
		return nil
	}
	if p == "" || path.Clean(p) != p || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") || strings.Contains(p, "\x00") {
		return fmt.Errorf("%w: path %q", errFrame, p)
	}
	return nil
}

// checkRedirect refuses a redirect of an overlay that would lead elsewhere than into the image.
func checkRedirect(value string) error {
	for part := range strings.SplitSeq(strings.TrimPrefix(value, "/"), "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("%w: redirect %q", errFrame, value)
		}
	}
	return nil
}

// removeAll removes a name and what is below it.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	// os.Root removes without following links.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}
