package guestfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

// maxLinks bounds a chain of links, as the kernel does (path_resolution(7)).
const maxLinks = 40

// Attributes are what a file in the guest is to have; nil: what the file that is replaced has, and else root as the owner and a mode that the
// method says.
type Attributes struct {
	UID, GID *uint32 // as the guest counts
	Mode     *uint32 // permissions with setuid, setgid and the sticky bit
}

// place is a name in the directory that it is in, which is looked up once.
type place struct {
	dir  *os.File
	name string
}

func (p place) close() { _ = p.dir.Close() }

// locate follows links to the directory of a file, which need not exist.
func (r *Root) locate(name string) (place, error) {
	file := clean(name)
	for range maxLinks {
		if file == "." {
			return place{}, wrap("write", name, unix.EISDIR)
		}
		dir, err := openat2(r.dir, path.Dir(file), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return place{}, wrap("open", path.Dir(file), err)
		}
		p := place{dir, path.Base(file)}
		if _, err := look(dir); err != nil {
			p.close()
			return place{}, wrap("open", path.Dir(file), err)
		}
		target, err := readLink(dir, p.name)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return p, nil
		}
		p.close()
		if err != nil {
			return place{}, wrap("read link", file, err)
		}
		if !strings.HasPrefix(target, "/") {
			target = path.Dir(file) + "/" + target // ".." is the kernel's to resolve: a directory may be a link
		}
		file = strings.TrimLeft(target, "/")
		if file == "" || strings.HasSuffix(file, "/") || path.Base(file) == ".." || path.Base(file) == "." {
			return place{}, wrap("write", name, unix.EISDIR)
		}
	}
	return place{}, wrap("open", name, unix.ELOOP)
}

// owner gives the host's ids of what is to be made; old: what is there already.
func (r *Root) owner(a Attributes, old *unix.Stat_t) (uid, gid int, err error) {
	host := func(id *uint32, there func() uint32) (int, error) {
		switch {
		case id == nil && old != nil:
			return int(there()), nil
		case id == nil:
			return int(r.ids.Base), nil
		case *id >= r.ids.Count:
			return 0, fmt.Errorf("the guest has no id %d: its ids end with %d", *id, r.ids.Count-1)
		}
		return int(r.ids.Base) + int(*id), nil
	}
	uid, uidErr := host(a.UID, func() uint32 { return old.Uid })
	gid, gidErr := host(a.GID, func() uint32 { return old.Gid })
	return uid, gid, errors.Join(uidErr, gidErr)
}

func mode(a Attributes, old *unix.Stat_t, otherwise fs.FileMode) uint32 {
	switch {
	case a.Mode != nil:
		return *a.Mode & 0o7777
	case old != nil:
		return old.Mode & 0o7777
	}
	return uint32(otherwise.Perm())
}

// Writer is a file of the guest's that is being written. The guest sees it under its name once Commit has returned.
//
// Until then the file has no name at all (O_TMPFILE): nothing is left of it when the process dies, and the guest has no name to meddle with.
// On a file system that cannot do that (an overlay before Linux 6.1) it has a name that nobody guesses, which a killed process leaves behind.
type Writer struct {
	*os.File

	root      *Root
	place     place
	name      string // in the guest, for messages
	temporary string // name in the directory; "": none
	uid, gid  int    // on the host
	mode      uint32
}

// Create begins to write a file; perm is the mode of a new one. What is there must be a regular file, which is replaced in one step.
func (r *Root) Create(name string, perm fs.FileMode, a Attributes) (*Writer, error) {
	p, err := r.locate(name)
	if err != nil {
		return nil, err
	}
	w := &Writer{root: r, place: p, name: name}
	if err := r.asGuest(func() error { return w.create(perm, a) }); err != nil {
		p.close()
		return nil, wrap("write", name, err)
	}
	return w, nil
}

func (w *Writer) create(perm fs.FileMode, a Attributes) (err error) {
	old, err := w.place.regular()
	if err != nil {
		return err
	}
	if w.uid, w.gid, err = w.root.owner(a, old); err != nil {
		return err
	}
	w.mode = mode(a, old, perm)
	w.File, err = newFile(w.place.dir, ".", w.name, unix.O_TMPFILE)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return w.createNamed()
	}
	return err
}

func (w *Writer) createNamed() (err error) {
	w.temporary = w.place.temporary()
	w.File, err = newFile(w.place.dir, w.temporary, w.name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW)
	return err
}

// newFile makes a file that only its owner may open; name is what messages call it.
func newFile(dir *os.File, at, name string, flags uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC | flags, Mode: 0o600, Resolve: unix.RESOLVE_BENEATH}
	fd, err := fdio.Openat2(int(dir.Fd()), at, how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// temporary is a name beside p's that nobody guesses.
func (p place) temporary() string { return fmt.Sprintf(".%.100s.%s", p.name, rand.Text()) }

// regular looks at the file that is there; nil: none is.
func (p place) regular() (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.dir.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil //nolint:nilnil // a new file has no predecessor
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, unix.EISDIR
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, ErrNotRegular
	}
	return &st, nil
}

// Commit gives the file its owner, its mode and, last, its name.
func (w *Writer) Commit() error {
	defer w.place.close()
	err := w.root.asGuest(func() error {
		fd, dir := int(w.Fd()), int(w.place.dir.Fd())
		if err := unix.Fchown(fd, w.uid, w.gid); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, w.mode); err != nil {
			return err
		}
		if w.temporary == "" {
			if done, err := w.link(fd, dir); done || err != nil {
				return err
			}
		}
		return unix.Renameat(dir, w.temporary, dir, w.place.name)
	})
	if err != nil {
		return wrap("write", w.name, errors.Join(err, w.root.asGuest(w.discard)))
	}
	return wrap("write", w.name, w.Close())
}

// link gives the file its name, or, where the name is taken, a temporary one to be renamed: there is no call that replaces a file by one
// without a name. A process that is killed right between the two leaves the temporary name.
func (w *Writer) link(fd, dir int) (done bool, err error) {
	self := "/proc/self/fd/" + strconv.Itoa(fd) // AT_EMPTY_PATH wants a capability
	err = unix.Linkat(unix.AT_FDCWD, self, dir, w.place.name, unix.AT_SYMLINK_FOLLOW)
	if !errors.Is(err, unix.EEXIST) {
		return err == nil, err
	}
	temporary := w.place.temporary()
	if err := unix.Linkat(unix.AT_FDCWD, self, dir, temporary, unix.AT_SYMLINK_FOLLOW); err != nil {
		return false, err
	}
	w.temporary = temporary
	return false, nil
}

// Discard takes the file away again.
func (w *Writer) Discard() error {
	defer w.place.close()
	return wrap("take back", w.name, w.root.asGuest(w.discard))
}

func (w *Writer) discard() error {
	err := w.Close()
	if w.temporary == "" {
		return err
	}
	return errors.Join(err, unix.Unlinkat(int(w.place.dir.Fd()), w.temporary, 0))
}

// Mkdir makes a directory unless it is there; perm is its mode, unless a says another.
func (r *Root) Mkdir(name string, perm fs.FileMode, a Attributes) error {
	if info, err := r.Stat(name); err == nil && info.Mode.IsDir() {
		return nil
	}
	p, err := r.locate(name)
	if err != nil {
		return err
	}
	defer p.close()
	return wrap("make directory", name, r.asGuest(func() error { return r.mkdir(p, perm, a) }))
}

func (r *Root) mkdir(p place, perm fs.FileMode, a Attributes) error {
	uid, gid, err := r.owner(a, nil)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(int(p.dir.Fd()), p.name, 0o700); err != nil {
		return err
	}
	f, err := openat2(p.dir, p.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	if err := unix.Fchown(int(f.Fd()), uid, gid); err != nil {
		return err
	}
	return unix.Fchmod(int(f.Fd()), mode(a, nil, perm))
}

// MkdirAll makes a directory and those that it is in, unless they are there: root's, and for all to read.
func (r *Root) MkdirAll(name string) error {
	err := r.Mkdir(name, 0o755, Attributes{})
	if !errors.Is(err, fs.ErrNotExist) || clean(name) == "." {
		return err
	}
	if err := r.MkdirAll(path.Dir(clean(name))); err != nil {
		return err
	}
	return r.Mkdir(name, 0o755, Attributes{})
}

// SetDirectory gives a directory that is there an owner and a mode.
func (r *Root) SetDirectory(name string, a Attributes) error {
	found, st, err := r.find(name)
	if err != nil {
		return err
	}
	defer found.Close() //nolint:errcheck // only a path
	dir, err := openat2(found, ".", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH)
	if err != nil {
		return wrap("open", name, err)
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	uid, gid, err := r.owner(a, &st)
	if err != nil {
		return wrap("change", name, err)
	}
	return wrap("change", name, r.asGuest(func() error {
		if err := unix.Fchown(int(dir.Fd()), uid, gid); err != nil {
			return err
		}
		return unix.Fchmod(int(dir.Fd()), mode(a, &st, 0))
	}))
}

// Symlink makes a link. A link or a file that is there is replaced in one step; what a link there leads to is not touched.
func (r *Root) Symlink(target, name string, a Attributes) error {
	if clean(name) == "." {
		return wrap("make link", name, unix.EISDIR)
	}
	dir, err := openat2(r.dir, path.Dir(clean(name)), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return wrap("open", path.Dir(clean(name)), err)
	}
	p := place{dir, path.Base(clean(name))}
	defer p.close()
	if _, err := look(dir); err != nil {
		return wrap("open", path.Dir(clean(name)), err)
	}
	return wrap("make link", name, r.asGuest(func() error { return r.symlink(target, p, a) }))
}

func (r *Root) symlink(target string, p place, a Attributes) error {
	uid, gid, err := r.owner(a, nil)
	if err != nil {
		return err
	}
	dir, temporary := int(p.dir.Fd()), ".link."+rand.Text()
	if err := unix.Symlinkat(target, dir, temporary); err != nil {
		return err
	}
	if err = unix.Fchownat(dir, temporary, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		err = unix.Renameat(dir, temporary, dir, p.name)
	}
	if err != nil {
		err = errors.Join(err, unix.Unlinkat(dir, temporary, 0))
	}
	return err
}
