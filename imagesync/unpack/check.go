package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Check looks at a tree that another program unpacked beneath path, as Tar would
// have: the same limits and refusals, and device nodes are taken away. Times of
// directories that lose one change.
func Check(ctx context.Context, path string, limits Limits) (Stats, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	c := checker{limits: limits, seen: map[uint64]struct{}{}}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Stats{}, fmt.Errorf("look at %s: %w", path, err)
	}
	if err := c.attrs(fd, ".", &st); err != nil {
		return c.stats, err
	}
	return c.stats, c.dir(ctx, fd, ".", 0)
}

type checker struct {
	limits Limits
	stats  Stats
	seen   map[uint64]struct{} // inodes with several names, so that their bytes count once
}

// namesAtATime of a directory are held, in as many directories at once as the tree is deep: with names
// of 255 bytes, less than 20 MiB at maxDepth.
const namesAtATime = 256

func (c *checker) dir(ctx context.Context, fd int, path string, depth int) error {
	if depth > maxDepth {
		return &Error{Entry: path, Reason: fmt.Sprintf("is more than %d directories deep", maxDepth)}
	}
	own, err := openDir(fd, ".") // reading moves the offset
	if err != nil {
		return hostError("open", path, err)
	}
	list := os.NewFile(uintptr(own), path)
	defer list.Close() //nolint:errcheck // only read
	for {
		// Removing a name that was read (a device's) makes the kernel skip no other.
		names, err := list.Readdirnames(namesAtATime)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return hostError("list", path, err)
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("check %q: %w", shorten(path), err)
			}
			if err := c.entry(ctx, fd, name, filepath.Join(path, name), depth); err != nil {
				return err
			}
		}
	}
}

func (c *checker) entry(ctx context.Context, parent int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return hostError("look at", path, err)
	}
	if c.stats.Entries++; c.stats.Entries > c.limits.Entries {
		return &Error{Entry: path, Reason: fmt.Sprintf("is one more than the limit of %d entries", c.limits.Entries)}
	}
	if st.Uid > c.limits.MaxID || st.Gid > c.limits.MaxID {
		return &Error{Entry: path, Reason: fmt.Sprintf("belongs to %d:%d, beyond the largest id %d of a guest", st.Uid, st.Gid, c.limits.MaxID)}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			return &Error{Entry: path, Reason: "is an overlayfs whiteout (character device 0:0)"}
		}
		c.stats.Devices++
		c.stats.Entries--
		if err := unix.Unlinkat(parent, name, 0); err != nil {
			return hostError("remove", path, err)
		}
	case unix.S_IFDIR:
		fd, err := openDir(parent, name)
		if err != nil {
			return hostError("open", path, err)
		}
		defer unix.Close(fd) //nolint:errcheck // only read
		if err := c.attrs(fd, path, &st); err != nil {
			return err
		}
		return c.dir(ctx, fd, path, depth+1)
	case unix.S_IFREG:
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return hostError("open", path, err)
		}
		defer unix.Close(fd) //nolint:errcheck // only read
		return c.attrs(fd, path, &st)
	}
	return nil
}

// attrs counts a file's bytes and looks at its extended attributes.
func (c *checker) attrs(fd int, path string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		if _, again := c.seen[st.Ino]; again {
			return nil
		}
		if st.Nlink > 1 {
			c.seen[st.Ino] = struct{}{}
		}
		if c.stats.Bytes += st.Size; c.stats.Bytes > c.limits.Bytes {
			return &Error{Entry: path, Reason: fmt.Sprintf("makes the content larger than %d bytes", c.limits.Bytes)}
		}
	}
	size, err := unix.Flistxattr(fd, nil)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return hostError("list attributes of", path, err)
	}
	if size <= 0 {
		return nil
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(fd, names); err != nil {
		return hostError("list attributes of", path, err)
	}
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return &Error{Entry: path, Reason: "has the overlayfs attribute " + name}
		}
	}
	return nil
}
