package unpack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/idattr"
)

// attrs are what every entry carries.
type attrs struct {
	mode   uint32 // permission bits with setuid, setgid and sticky
	uid    int
	gid    int
	mtime  time.Time
	xattrs map[string]string
}

// frame is one open directory of the current chain. Its attributes are applied
// when the chain leaves it, since members change its time and, with default access
// lists or setgid in place, would inherit from it.
type frame struct {
	name  string
	fd    int
	attrs attrs
	chown bool // the archive named an owner
}

// tree writes entries beneath one directory. Not for concurrent use.
type tree struct {
	limits   Limits
	stats    Stats
	asRoot   bool // owners and security attributes can be set
	stack    []frame
	buf      []byte
	unpolled int64 // bytes since the last look at the free space
}

// newTree takes the directory at path, which must exist and be empty.
func newTree(path string, limits Limits) (*tree, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	root := frame{fd: fd, attrs: attrs{mode: 0o755, mtime: time.Now()}}
	return &tree{limits: limits, asRoot: os.Geteuid() == 0, stack: []frame{root}, buf: make([]byte, bufferSize)}, nil
}

// finish applies what is left to apply and closes everything.
func (t *tree) finish() error {
	err := t.leave(0)
	return errors.Join(err, t.leaveRoot())
}

// abort closes everything and applies nothing.
func (t *tree) abort() {
	for _, f := range t.stack {
		_ = unix.Close(f.fd)
	}
	t.stack = nil
}

func (t *tree) leaveRoot() error {
	root := t.stack[0]
	t.stack = nil
	return t.close(root)
}

// leave shortens the chain to depth directories below the root.
func (t *tree) leave(depth int) error {
	for len(t.stack) > depth+1 {
		last := t.stack[len(t.stack)-1]
		t.stack = t.stack[:len(t.stack)-1]
		if err := t.close(last); err != nil {
			return err
		}
	}
	return nil
}

// close applies a directory's attributes and closes it.
func (t *tree) close(f frame) error {
	err := t.setAttrs(f.fd, f.attrs, f.chown)
	if err == nil {
		err = unix.UtimesNanoAt(f.fd, ".", times(f.attrs.mtime), 0)
	}
	if cerr := unix.Close(f.fd); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("finish directory %q: %w", f.name, err)
	}
	return nil
}

// enter makes the chain end at the directory with these components, creating what
// is missing, and returns its descriptor, which stays the tree's.
func (t *tree) enter(entry string, dirs []string) (int, error) {
	common := t.common(dirs)
	if err := t.leave(common); err != nil {
		return -1, err
	}
	for _, name := range dirs[common:] {
		if err := t.push(entry, name); err != nil {
			return -1, err
		}
	}
	return t.stack[len(t.stack)-1].fd, nil
}

// common counts the leading components that the chain has already.
func (t *tree) common(dirs []string) int {
	n := 0
	for n < len(dirs) && n+1 < len(t.stack) && t.stack[n+1].name == dirs[n] {
		n++
	}
	return n
}

// push opens the child directory name of the chain's last one, making it if needed.
func (t *tree) push(entry, name string) error {
	parent := t.stack[len(t.stack)-1].fd
	fd, err := openDir(parent, name)
	if errors.Is(err, unix.ENOENT) {
		if err = retry(func() error { return unix.Mkdirat(parent, name, 0o700) }); err != nil {
			return hostError("make directory", entry, err)
		}
		if fd, err = openDir(parent, name); err == nil {
			t.stack = append(t.stack, frame{name: name, fd: fd, attrs: attrs{mode: 0o755, mtime: time.Now()}})
			return nil
		}
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return &Error{Entry: entry, Reason: fmt.Sprintf("passes through %q, which is not a directory", name)}
	}
	if err != nil {
		return hostError("open directory", entry, err)
	}
	f := frame{name: name, fd: fd}
	if f.attrs, err = reenter(fd); err != nil {
		_ = unix.Close(fd)
		return hostError("reopen directory", entry, err)
	}
	t.stack = append(t.stack, f)
	return nil
}

// reenter reads what close applied, so that it can be applied again, and takes
// away the default access list, which new members would inherit.
func reenter(fd int) (attrs, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return attrs{}, err
	}
	a := attrs{mode: st.Mode & 0o7777, mtime: time.Unix(st.Mtim.Unix())}
	value := make([]byte, 4096)
	n, err := unix.Fgetxattr(fd, idattr.ACLDefault, value)
	if err != nil {
		return a, nil //nolint:nilerr // no default list, or a file system without lists
	}
	a.xattrs = map[string]string{idattr.ACLDefault: string(value[:n])}
	return a, unix.Fremovexattr(fd, idattr.ACLDefault)
}

// dir makes a directory or sets the attributes of one that is there.
func (t *tree) dir(entry string, parts []string, a attrs) error {
	if len(parts) == 0 {
		if err := t.leave(0); err != nil {
			return err
		}
		t.stack[0].attrs, t.stack[0].chown = a, true
		return nil
	}
	parent, err := t.enter(entry, parts[:len(parts)-1])
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	err = retry(func() error { return unix.Mkdirat(parent, name, 0o700) })
	if errors.Is(err, unix.EEXIST) {
		err = t.clear(parent, name)
	}
	if err != nil {
		return hostError("make directory", entry, err)
	}
	if err := t.push(entry, name); err != nil {
		return err
	}
	last := &t.stack[len(t.stack)-1]
	last.attrs, last.chown = a, true
	return nil
}

// clear makes way for a directory: what is there stays if it is one.
func (t *tree) clear(parent int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := unix.Unlinkat(parent, name, 0); err != nil {
		return err
	}
	return unix.Mkdirat(parent, name, 0o700)
}

// create calls make, which makes something under a name that must not exist. What
// is there from an earlier entry of that name is replaced, as tar does.
func create(entry string, parent int, name string, make func() error) error {
	err := retry(make)
	if errors.Is(err, unix.EEXIST) {
		err = unix.Unlinkat(parent, name, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		}
		if errors.Is(err, unix.ENOTEMPTY) {
			return &Error{Entry: entry, Reason: "replaces a directory that is not empty"}
		}
		if err == nil {
			err = retry(make)
		}
	}
	if err != nil {
		return hostError("create", entry, err)
	}
	return nil
}

// place enters the directory of an entry that is not the root and gives its last component.
func (t *tree) place(entry string, parts []string) (parent int, name string, err error) {
	if len(parts) == 0 {
		return -1, "", &Error{Entry: entry, Reason: "stands for the root, which must be a directory"}
	}
	parent, err = t.enter(entry, parts[:len(parts)-1])
	return parent, parts[len(parts)-1], err
}

// setAttrs sets owner, extended attributes and mode, in this order: a change of
// owner clears setuid and file capabilities, an access list changes the mode.
func (t *tree) setAttrs(fd int, a attrs, chown bool) error {
	if chown && t.asRoot {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return err
		}
	}
	for name, value := range a.xattrs {
		if err := t.setXattr(fd, name, value); err != nil {
			return err
		}
	}
	return unix.Fchmod(fd, a.mode)
}

func openDir(parent int, name string) (int, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func times(mtime time.Time) []unix.Timespec {
	ts := unix.NsecToTimespec(mtime.UnixNano())
	return []unix.Timespec{ts, ts}
}

// hostError names the entry in an error of the host. Errors about the content pass unchanged.
func hostError(verb, entry string, err error) error {
	if content := (*Error)(nil); errors.As(err, &content) {
		if content.Entry == "" {
			content.Entry = entry
		}
		return err
	}
	if errors.Is(err, unix.ENAMETOOLONG) {
		return &Error{Entry: entry, Reason: "has a name that is too long"}
	}
	return fmt.Errorf("%s %q: %w", verb, shorten(entry), err)
}

// readError tells a cut or damaged archive from a reader that failed.
func readError(entry string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{Entry: entry, Reason: "is cut off: the archive ends inside it"}
	}
	if isContent(err) {
		return hostError("read", entry, err)
	}
	return fmt.Errorf("read %q: %w", shorten(entry), err)
}
