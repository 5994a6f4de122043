package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
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
			if err := fdio.WriteAt(fd, piece, offset); err != nil {
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

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
