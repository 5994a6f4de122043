package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is one read of a large file: large enough that system calls do not
	// count, small enough to stay in the processor's cache.
	bufferSize = 256 << 10
	// holeSize is the unit in which zeros of a sparse file become holes.
	holeSize = 4096
	// spaceInterval is how many bytes are written between looks at the free space.
	spaceInterval = 64 << 20
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
	n, err := unix.Fgetxattr(fd, aclDefault, value)
	if err != nil {
		return a, nil //nolint:nilerr // no default list, or a file system without lists
	}
	a.xattrs = map[string]string{aclDefault: string(value[:n])}
	return a, unix.Fremovexattr(fd, aclDefault)
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

// file writes size bytes of r; zeros become holes when sparse is set.
func (t *tree) file(ctx context.Context, entry string, parts []string, a attrs, size int64, r io.Reader, sparse bool) error {
	parent, name, err := t.place(entry, parts)
	if err != nil {
		return err
	}
	if size < 0 || size > t.limits.Bytes-t.stats.Bytes {
		return &Error{Entry: entry, Reason: fmt.Sprintf("makes the content larger than %d bytes", t.limits.Bytes)}
	}
	t.stats.Bytes += size
	var fd int
	err = create(entry, parent, name, func() (err error) {
		fd, err = unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = t.copy(ctx, entry, fd, size, r, sparse)
	if err == nil {
		if err = t.setAttrs(fd, a, true); err != nil {
			err = hostError("set attributes of", entry, err)
		}
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = hostError("close", entry, cerr)
	}
	if err != nil {
		return err
	}
	return t.touch(entry, parent, name, a)
}

// copy writes the content. Data goes to explicit offsets so that holes are only skipped.
func (t *tree) copy(ctx context.Context, entry string, fd int, size int64, r io.Reader, sparse bool) error {
	holes, _ := r.(HoleReader)
	for offset := int64(0); offset < size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unpack %q: %w", shorten(entry), err)
		}
		if holes != nil {
			skipped, err := holes.Hole()
			if err != nil {
				return readError(entry, err)
			}
			if skipped > 0 {
				offset += skipped
				continue
			}
		}
		chunk := t.buf[:min(int64(len(t.buf)), size-offset)]
		if _, err := io.ReadFull(r, chunk); err != nil {
			return readError(entry, err)
		}
		if err := t.write(fd, chunk, offset, sparse); err != nil {
			return hostError("write", entry, err)
		}
		offset += int64(len(chunk))
	}
	if sparse || holes != nil {
		if err := unix.Ftruncate(fd, size); err != nil {
			return hostError("write", entry, err)
		}
	}
	return nil
}

func (t *tree) write(fd int, chunk []byte, offset int64, sparse bool) error {
	for len(chunk) > 0 {
		piece := chunk
		if sparse {
			piece = chunk[:min(holeSize, len(chunk))]
		}
		if !sparse || !allZero(piece) {
			if err := pwrite(fd, piece, offset); err != nil {
				return err
			}
			if err := t.poll(fd, len(piece)); err != nil {
				return err
			}
		}
		chunk, offset = chunk[len(piece):], offset+int64(len(piece))
	}
	return nil
}

// poll looks at the free space now and then.
func (t *tree) poll(fd, written int) error {
	t.unpolled += int64(written)
	if t.unpolled < spaceInterval {
		return nil
	}
	t.unpolled = 0
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Bavail*uint64(st.Bsize) < uint64(t.limits.Reserve) { //nolint:gosec // both are positive
		return unix.ENOSPC
	}
	return nil
}

// symlink writes a symbolic link; its target is data.
func (t *tree) symlink(entry string, parts []string, a attrs, target string) error {
	parent, name, err := t.place(entry, parts)
	if err != nil {
		return err
	}
	if target == "" || len(target) >= unix.PathMax {
		return &Error{Entry: entry, Reason: fmt.Sprintf("is a symbolic link with a target of %d bytes", len(target))}
	}
	err = create(entry, parent, name, func() error { return unix.Symlinkat(target, parent, name) })
	if err != nil {
		return err
	}
	t.stats.SkippedXattrs += len(a.xattrs) // only the host's own namespaces exist on links
	return t.ownAndTouch(entry, parent, name, a)
}

// fifo makes a named pipe.
func (t *tree) fifo(entry string, parts []string, a attrs) error {
	parent, name, err := t.place(entry, parts)
	if err != nil {
		return err
	}
	err = create(entry, parent, name, func() error { return unix.Mknodat(parent, name, unix.S_IFIFO|0o600, 0) })
	if err != nil {
		return err
	}
	t.stats.SkippedXattrs += len(a.xattrs)
	if t.asRoot {
		if err := unix.Fchownat(parent, name, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return hostError("own", entry, err)
		}
	}
	// The name was made a line above in a directory that nobody else writes.
	if err := unix.Fchmodat(parent, name, a.mode, 0); err != nil {
		return hostError("set attributes of", entry, err)
	}
	return t.touch(entry, parent, name, a)
}

func (t *tree) ownAndTouch(entry string, parent int, name string, a attrs) error {
	if t.asRoot {
		if err := unix.Fchownat(parent, name, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return hostError("own", entry, err)
		}
	}
	return t.touch(entry, parent, name, a)
}

func (t *tree) touch(entry string, parent int, name string, a attrs) error {
	if err := unix.UtimesNanoAt(parent, name, times(a.mtime), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return hostError("set times of", entry, err)
	}
	return nil
}

// hardlink makes a second name for a file of this archive.
func (t *tree) hardlink(entry string, parts, target []string) error {
	parent, name, err := t.place(entry, parts)
	if err != nil {
		return err
	}
	if len(target) == 0 {
		return &Error{Entry: entry, Reason: "is a hard link to the root"}
	}
	oldParent, done, err := t.lookup(entry, target[:len(target)-1])
	if err != nil {
		return err
	}
	defer done()
	oldName := target[len(target)-1]
	var st unix.Stat_t
	if err := unix.Fstatat(oldParent, oldName, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &Error{Entry: entry, Reason: "is a hard link to what is not in the archive before it"}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return &Error{Entry: entry, Reason: "is a hard link to a directory"}
	}
	if oldName == name && sameDir(oldParent, parent) {
		return &Error{Entry: entry, Reason: "is a hard link to itself"}
	}
	err = create(entry, parent, name, func() error { return unix.Linkat(oldParent, oldName, parent, name, 0) })
	if errors.Is(err, unix.EMLINK) {
		return &Error{Entry: entry, Reason: "is one hard link too many"}
	}
	return err
}

// lookup opens an existing directory without moving the chain; done closes what it opened.
func (t *tree) lookup(entry string, dirs []string) (fd int, done func(), err error) {
	common := t.common(dirs)
	fd = t.stack[common].fd
	opened := -1
	done = func() {
		if opened >= 0 {
			_ = unix.Close(opened)
		}
	}
	for _, name := range dirs[common:] {
		next, err := openDir(fd, name)
		done()
		if err != nil {
			opened = -1
			return -1, done, &Error{Entry: entry, Reason: "is a hard link to what is not in the archive before it"}
		}
		fd, opened = next, next
	}
	return fd, done, nil
}

func sameDir(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Ino == y.Ino && x.Dev == y.Dev
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

func pwrite(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
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
