// Package treecopy copies an unpacked image for one instance, with everything that is easily
// lost: owners, modes, links, holes, access lists and file capabilities.
package treecopy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
	"github.com/compute-agent/compute-agent/internal/idattr"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// bufferSize is one read of a file that cannot be cloned.
const bufferSize = 256 << 10

// copier copies one tree. Every step goes from an open directory to a name in it
// without following links: the tree is an image's and its links lead anywhere.
type copier struct {
	ids   storage.IDRange
	root  int               // destination
	links map[uint64]string // inode of a file with several names -> its first copy, relative to root
	dev   uint64            // device of the source; mounts below it are not copied
	clone bool              // the file system may share blocks between files
	layer bool              // what an overlay notes in its upper directory is copied, too
	buf   []byte
}

// AsIs is the range of a copy whose ids stay what they are.
var AsIs = storage.IDRange{Size: 1<<32 - 1}

// Copy copies the directory source to the existing directory target, and moves
// every owner, access list and file capability into the id range. Blocks are shared where
// the file system can.
func Copy(ctx context.Context, source, target string, ids storage.IDRange) error {
	return run(ctx, source, target, copier{ids: ids})
}

// CopyLayer copies a directory that may hold the upper one of an overlay as Copy does, with the ids as they are.
func CopyLayer(ctx context.Context, source, target string) error {
	return run(ctx, source, target, copier{ids: AsIs, layer: true})
}

func run(ctx context.Context, source, target string, c copier) error {
	src, err := fdio.OpenDir(unix.AT_FDCWD, source)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	defer unix.Close(src) //nolint:errcheck // only read
	dst, err := fdio.OpenDir(unix.AT_FDCWD, target)
	if err != nil {
		return fmt.Errorf("open %s: %w", target, err)
	}
	defer unix.Close(dst) //nolint:errcheck // a directory holds nothing back
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return fmt.Errorf("look at %s: %w", source, err)
	}
	c.root, c.links, c.dev, c.clone, c.buf = dst, map[uint64]string{}, st.Dev, true, make([]byte, bufferSize)
	if err := c.members(ctx, src, dst, "."); err != nil {
		return err
	}
	return c.finish(src, dst, ".", &st)
}

// members copies what is in a directory; path is relative to the root.
func (c *copier) members(ctx context.Context, src, dst int, path string) error {
	names, err := fdio.ReadNames(src)
	if err != nil {
		return fmt.Errorf("list %s: %w", path, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("copy image: %w", context.Cause(ctx))
		}
		if err := c.entry(ctx, src, dst, name, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) entry(ctx context.Context, src, dst int, name, path string) error {
	var st unix.Stat_t
	err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = c.dir(ctx, src, dst, name, path, &st)
	case unix.S_IFREG:
		err = c.file(src, dst, name, path, &st)
	case unix.S_IFLNK:
		err = c.symlink(src, dst, name, &st)
	case unix.S_IFIFO:
		if err = unix.Mknodat(dst, name, unix.S_IFIFO|0o600, 0); err == nil {
			err = c.own(dst, name, &st)
		}
		if err == nil {
			err = unix.Fchmodat(dst, name, st.Mode&0o7777, 0)
		}
	case unix.S_IFCHR:
		if !c.layer || st.Rdev != 0 {
			return nil
		}
		err = c.whiteout(dst, name, path, &st)
	default: // sockets mean nothing without their server, device nodes cannot be used
		return nil
	}
	if err == nil {
		err = unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return nil
}

func (c *copier) dir(ctx context.Context, src, dst int, name, path string, st *unix.Stat_t) error {
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return err
	}
	from, err := fdio.OpenDir(src, name)
	if err != nil {
		return err
	}
	defer unix.Close(from) //nolint:errcheck // only read
	to, err := fdio.OpenDir(dst, name)
	if err != nil {
		return err
	}
	defer unix.Close(to) //nolint:errcheck // a directory holds nothing back
	if st.Dev == c.dev {
		if err := c.members(ctx, from, to, path); err != nil {
			return err
		}
	}
	return c.finish(from, to, path, st)
}

func (c *copier) file(src, dst int, name, path string, st *unix.Stat_t) error {
	if linked, err := c.link(dst, name, path, st); linked || err != nil {
		return err
	}
	from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from) //nolint:errcheck // only read
	to, err := unix.Openat(dst, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = c.content(from, to, st)
	if err == nil {
		err = c.finish(from, to, path, st)
	}
	return errors.Join(err, unix.Close(to))
}

// link makes a name of a file that was copied under another one already.
func (c *copier) link(dst int, name, path string, st *unix.Stat_t) (bool, error) {
	if st.Nlink <= 1 {
		return false, nil
	}
	if first, ok := c.links[st.Ino]; ok {
		err := unix.Linkat(c.root, first, dst, name, 0)
		if err == nil || !errors.Is(err, unix.ENAMETOOLONG) && !errors.Is(err, unix.EMLINK) {
			return true, err
		}
	}
	c.links[st.Ino] = path
	return false, nil
}

// whiteout copies what stands in a layer for a name that is gone; an overlay gives one inode to many of them.
func (c *copier) whiteout(dst int, name, path string, st *unix.Stat_t) error {
	if linked, err := c.link(dst, name, path, st); linked || err != nil {
		return err
	}
	return unix.Mknodat(dst, name, unix.S_IFCHR, 0)
}

// content clones the blocks where the file system can, and copies what is not a hole where it cannot.
func (c *copier) content(from, to int, st *unix.Stat_t) error {
	if c.clone && st.Size > 0 {
		err := unix.IoctlFileClone(to, from)
		if err == nil {
			return nil
		}
		// Another file system, or one without shared blocks: so are all other files.
		c.clone = false
	}
	if st.Blocks*512 >= st.Size {
		return c.copyRange(from, to, 0, st.Size)
	}
	for e, err := range fdio.Extents(from, st.Size) {
		if err != nil {
			return err
		}
		if err := c.copyRange(from, to, e.Begin, e.End); err != nil {
			return err
		}
	}
	return unix.Ftruncate(to, st.Size)
}

func (c *copier) copyRange(from, to int, begin, end int64) error {
	for begin < end {
		n, err := fdio.ReadAt(from, c.buf[:min(int64(len(c.buf)), end-begin)], begin)
		if err != nil || n == 0 {
			return err
		}
		if err := fdio.WriteAt(to, c.buf[:n], begin); err != nil {
			return err
		}
		begin += int64(n)
	}
	return nil
}

func (c *copier) symlink(src, dst int, name string, st *unix.Stat_t) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(src, name, target)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(target[:n]), dst, name); err != nil {
		return err
	}
	return c.own(dst, name, st)
}

// own gives a name its shifted owner.
func (c *copier) own(dst int, name string, st *unix.Stat_t) error {
	uid, gid, err := c.owner(st)
	if err != nil {
		return err
	}
	return unix.Fchownat(dst, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *copier) owner(st *unix.Stat_t) (uid, gid int, err error) {
	if st.Uid >= c.ids.Size || st.Gid >= c.ids.Size {
		return 0, 0, fmt.Errorf("owner %d:%d is beyond the %d ids of the instance", st.Uid, st.Gid, c.ids.Size)
	}
	return int(c.ids.Base + st.Uid), int(c.ids.Base + st.Gid), nil
}

// finish gives an open file or directory its attributes. The order matters: a
// change of owner clears setuid and capabilities, an access list changes the mode.
func (c *copier) finish(from, to int, path string, st *unix.Stat_t) error {
	uid, gid, err := c.owner(st)
	if err == nil {
		err = unix.Fchown(to, uid, gid)
	}
	if err == nil {
		err = c.xattrs(from, to)
	}
	if err == nil {
		err = unix.Fchmod(to, st.Mode&0o7777)
	}
	if err != nil {
		return fmt.Errorf("set attributes of %s: %w", path, err)
	}
	if path != "." {
		return nil
	}
	return unix.UtimesNanoAt(to, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func (c *copier) xattrs(from, to int) error {
	size, err := unix.Flistxattr(from, nil)
	if err != nil || size == 0 {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(from, list); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		noted := c.layer && strings.HasPrefix(name, "trusted.overlay.")
		if !noted && !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") && name != idattr.Capability {
			continue // the host's security module gives its own
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		shifted, err := c.shiftXattr(name, value[:n])
		if err == nil {
			err = unix.Fsetxattr(to, name, shifted, 0)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// shiftXattr moves the ids that are inside a value. Capabilities become the instance's root's: those of
// revision 2 would be the host's, whom no program of the guest may become.
func (c *copier) shiftXattr(name string, value []byte) ([]byte, error) {
	switch {
	case name == idattr.Capability:
		root, _, err := idattr.CapabilityRoot(value)
		if err == nil {
			root, err = c.shift(root)
		}
		if err != nil {
			return nil, err
		}
		if root == 0 { // of the root who has it: nothing was moved
			return idattr.DropRoot(value), nil
		}
		return idattr.NameRoot(value, root), nil
	case strings.HasPrefix(name, "system.posix_acl_"):
		return idattr.ShiftACL(value, c.shift)
	}
	return value, nil
}

// shift moves an id that an attribute names.
func (c *copier) shift(id uint32) (uint32, error) {
	if id >= c.ids.Size {
		return 0, fmt.Errorf("id %d is beyond the %d ids of the instance", id, c.ids.Size)
	}
	return c.ids.Base + id, nil
}
