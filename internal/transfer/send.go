package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// settled is how long before the beginning of a pass an entry must have changed last to count as
	// unchanged: clocks of file systems are coarse.
	settled = 2 * time.Second
	// maxDepth bounds the directories that are open at once.
	maxDepth = 512
	// maxXattr is the kernel's limit of one value.
	maxXattr = 64 << 10
)

// sender sends one pass, tree by tree.
type sender struct {
	c    *codec
	acks *acknowledgements
	ids  storage.IDRange

	// Of the tree that is sent.
	had   *manifest
	layer bool

	began int64 // nanoseconds; what changed after is sent again by the next pass
	prune bool  // the destination may have names that are gone
	dev   uint64
	seen  map[uint64]string // inodes with several names that this pass sent -> first name
	buf   []byte

	count passed
	total *atomic.Int64 // bytes of content, all passes together
}

// sendTree opens a tree for as long as it takes to send it.
func (s *sender) sendTree(ctx context.Context, tree Tree, last bool) error {
	dir, done, err := tree.Open(ctx, last)
	if err != nil {
		return err
	}
	err = s.send(ctx, dir)
	if closeErr := done(); err == nil {
		err = closeErr
	}
	return err
}

// send walks the tree at dir.
func (s *sender) send(ctx context.Context, dir string) error {
	root, err := fdio.OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		return fmt.Errorf("open root disk: %w", err)
	}
	defer unix.Close(root) //nolint:errcheck // only read
	s.began = time.Now().Add(-settled).UnixNano()
	// What was written through memory maps until now shows in the ctime from here on.
	if err := unix.Syncfs(root); err != nil {
		return fmt.Errorf("write root disk back: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return fmt.Errorf("look at root disk: %w", err)
	}
	s.dev, s.prune, s.seen, s.buf = st.Dev, s.had.begin(), map[uint64]string{}, make([]byte, chunk+8)
	_, err = s.directory(ctx, root, ".", &st, 0)
	return err
}

// directory sends what is new in an open directory, and the directory if it or something in it is.
func (s *sender) directory(ctx context.Context, dir int, name string, st *unix.Stat_t, depth int) (changed bool, err error) {
	if depth > maxDepth {
		return false, fmt.Errorf("%s: directories are nested more than %d deep", name, maxDepth)
	}
	names, err := fdio.ReadNames(dir)
	if err != nil {
		return false, fmt.Errorf("list %s: %w", name, err)
	}
	slices.Sort(names)
	fresh := !s.had.has(name, st)
	if fresh {
		e := &entry{Type: typeDir, Path: text(name), Names: s.prune}
		if err := s.entry(e, st, false); err != nil {
			return false, err
		}
		if s.prune {
			if err := s.names(names); err != nil {
				return false, err
			}
		}
	}
	for _, child := range names {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		sent, err := s.child(ctx, dir, child, path.Join(name, child), depth)
		if err != nil {
			return false, err
		}
		changed = changed || sent
	}
	if !fresh && !changed {
		return false, nil
	}
	e := &entry{Type: typeDirEnd, Path: text(name)}
	if err := s.attributes(e, dir, st); err != nil {
		return false, fmt.Errorf("read attributes of %s: %w", name, err)
	}
	return fresh, s.entry(e, st, true)
}

// child sends a name if the destination does not have it. A name that goes meanwhile is no
// error: the directory has changed, and the next pass sends that.
func (s *sender) child(ctx context.Context, dir int, name, full string, depth int) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", full, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return s.subdirectory(ctx, dir, name, full, &st, depth)
	}
	if s.had.has(full, &st) {
		return false, nil
	}
	switch kind {
	case unix.S_IFREG:
		err = s.file(ctx, dir, name, full, &st)
	case unix.S_IFLNK:
		err = s.symlink(dir, name, full, &st)
	case unix.S_IFIFO:
		e := &entry{Type: typeFIFO, Path: text(full)}
		e.own(&st, s.ids)
		err = s.entry(e, &st, true)
	case unix.S_IFCHR:
		if !s.layer || st.Rdev != 0 {
			return false, nil // a device node cannot be used by a guest
		}
		err = s.entry(&entry{Type: typeWhiteout, Path: text(full)}, &st, true)
	default: // sockets mean nothing without their server
		return false, nil
	}
	if errors.Is(err, errVanished) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("send %s: %w", full, err)
	}
	return true, nil
}

// errVanished: the name is another one than the one that was looked at.
var errVanished = errors.New("changed meanwhile")

func (s *sender) subdirectory(ctx context.Context, dir int, name, full string, st *unix.Stat_t, depth int) (bool, error) {
	if st.Dev != s.dev {
		// Something is mounted here that is no part of the disk; its mount point is.
		e := &entry{Type: typeDir, Path: text(full)}
		return true, s.entry(e, st, false)
	}
	fd, err := fdio.OpenDir(dir, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s: %w", full, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return false, fmt.Errorf("look at %s: %w", full, err)
	}
	return s.directory(ctx, fd, full, &now, depth+1)
}

func (s *sender) file(ctx context.Context, dir int, name, full string, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		if first, ok := s.otherName(st); ok && first != full {
			return s.entry(&entry{Type: typeHard, Path: text(full), Target: text(first)}, st, true)
		}
	}
	fd, err := openFile(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return err
	}
	if now.Mode&unix.S_IFMT != unix.S_IFREG {
		return errVanished
	}
	e := &entry{Type: typeFile, Path: text(full), Size: now.Size}
	if err := s.attributes(e, fd, &now); err != nil {
		return err
	}
	if err := s.entry(e, &now, true); err != nil {
		return err
	}
	if err := s.content(ctx, fd, &now); err != nil {
		return err
	}
	if now.Nlink > 1 {
		s.seen[now.Ino] = full
	}
	return nil
}

// otherName gives a name of the file that the destination has: one of this pass, or one of
// an earlier pass if the file is as it was then.
func (s *sender) otherName(st *unix.Stat_t) (string, bool) {
	if first, ok := s.seen[st.Ino]; ok {
		return first, true
	}
	first, ok := s.had.link(st.Ino)
	if !ok || !s.had.has(first, st) {
		return "", false
	}
	return first, true
}

// content sends what of the file is not a hole.
func (s *sender) content(ctx context.Context, fd int, st *unix.Stat_t) error {
	if st.Blocks*512 >= st.Size {
		if err := s.stretch(ctx, fd, 0, st.Size); err != nil {
			return err
		}
		return s.c.write(kindEnd, nil)
	}
	for e, err := range fdio.Extents(fd, st.Size) {
		if err != nil {
			return err
		}
		if err := s.stretch(ctx, fd, e.Begin, e.End); err != nil {
			return err
		}
	}
	return s.c.write(kindEnd, nil)
}

func (s *sender) stretch(ctx context.Context, fd int, begin, end int64) error {
	for begin < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := fdio.ReadAt(fd, s.buf[8:8+min(chunk, end-begin)], begin)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // cut meanwhile; the next pass sends it again
		}
		binary.BigEndian.PutUint64(s.buf, uint64(begin)) //nolint:gosec // offsets are positive
		if err := s.c.write(kindData, s.buf[:8+n]); err != nil {
			return err
		}
		s.count.Bytes += int64(n)
		s.total.Add(int64(n))
		begin += int64(n)
	}
	return nil
}

func (s *sender) symlink(dir int, name, full string, st *unix.Stat_t) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, target)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return errVanished
	}
	if err != nil {
		return err
	}
	e := &entry{Type: typeLink, Path: text(full), Target: text(target[:n])}
	e.own(st, s.ids)
	return s.entry(e, st, true)
}

// names sends what a directory holds, so that the destination removes the rest.
func (s *sender) names(names []string) error {
	var b bytes.Buffer
	for _, name := range names {
		if b.Len()+len(name)+1 > chunk {
			if err := s.c.write(kindNames, b.Bytes()); err != nil {
				return err
			}
			b.Reset()
		}
		b.WriteString(name)
		b.WriteByte(0)
	}
	if b.Len() > 0 {
		if err := s.c.write(kindNames, b.Bytes()); err != nil {
			return err
		}
	}
	return s.c.write(kindEnd, nil)
}

// entry sends an entry's header. whole: with its acknowledgement the destination has the entry.
func (s *sender) entry(e *entry, st *unix.Stat_t, whole bool) error {
	s.count.Entries++
	e.Seq = s.acks.expect(sent{
		had: s.had, path: string(e.Path), version: versionOf(st), link: st.Nlink > 1 && st.Mode&unix.S_IFMT == unix.S_IFREG,
		keep: whole && st.Ctim.Nano() < s.began,
	})
	return s.c.writeJSON(kindEntry, e)
}

// own sets owner, mode and time of an entry.
func (e *entry) own(st *unix.Stat_t, ids storage.IDRange) {
	e.Mode, e.MTime = st.Mode&0o7777, st.Mtim.Nano()
	e.UID, e.GID = toGuest(st.Uid, ids), toGuest(st.Gid, ids)
}

// attributes reads what belongs to an open file or directory besides its content.
func (s *sender) attributes(e *entry, fd int, st *unix.Stat_t) error {
	e.own(st, s.ids)
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size == 0 {
		return err
	}
	list := make([]byte, size+1024) // the guest may add some meanwhile
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	shift := func(id uint32) (uint32, error) { return toGuest(id, s.ids), nil }
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		if !carried(name, s.layer) {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Fgetxattr(fd, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			value, err = shiftXattr(name, value[:n], shift)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		e.Xattrs = append(e.Xattrs, xattr{text(name), value})
	}
	return nil
}

// openFile opens a name that was a regular file a moment ago. Should it be a pipe or a device by
// now, opening it must neither wait nor do anything.
func openFile(dir int, name string) (int, error) {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return -1, errVanished
	}
	return fd, err
}
