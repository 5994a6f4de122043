package pack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

// members writes what is in the directory fd, sorted by name.
func (p *packer) members(fd int, prefix string, depth int) error {
	if depth > maxDepth {
		return &Error{Entry: shorten(prefix), Reason: fmt.Sprintf("is more than %d directories deep", maxDepth)}
	}
	names, err := list(fd)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", shorten(prefix), err)
	}
	for _, name := range names {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		if err := p.member(fd, name, prefix+name, depth); err != nil {
			return err
		}
	}
	return nil
}

// list reads a directory through a descriptor of its own, because the position in it
// belongs to the open file.
func list(dir int) ([]string, error) {
	fd, err := open(dir, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close() //nolint:errcheck // only read
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// member writes one name of the directory parent, and all below it.
func (p *packer) member(parent int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return p.lost("read attributes of", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.directory(parent, name, path, &st, depth)
	case unix.S_IFREG:
		return p.regular(parent, name, path, &st)
	case unix.S_IFLNK:
		return p.symlink(parent, name, path, &st)
	case unix.S_IFIFO:
		return p.w.header(p.attrs(kindFifo, path, &st))
	case unix.S_IFSOCK:
		p.stats.Sockets++
	default:
		p.stats.Devices++
	}
	return nil
}

func (p *packer) directory(parent int, name, path string, st *unix.Stat_t, depth int) error {
	fd, err := open(parent, name, unix.O_DIRECTORY)
	if errors.Is(err, unix.EXDEV) {
		p.stats.Mounts++
		return p.w.header(p.attrs(kindDir, path+"/", st))
	}
	if err != nil {
		return p.lost("open", path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	if err := unix.Fstat(fd, st); err != nil {
		return fmt.Errorf("read attributes of %q: %w", shorten(path), err)
	}
	if err := p.entry(fd, path+"/", st); err != nil {
		return err
	}
	return p.members(fd, path+"/", depth+1)
}

// entry writes the header of an open directory.
func (p *packer) entry(fd int, path string, st *unix.Stat_t) error {
	h := p.attrs(kindDir, path, st)
	var err error
	if h.xattrs, err = p.xattrs(fd); err != nil {
		return fmt.Errorf("read attributes of %q: %w", shorten(path), err)
	}
	return p.w.header(h)
}

func (p *packer) symlink(parent int, name, path string, st *unix.Stat_t) error {
	if first, again := p.linked(path, st); again {
		return p.hardlink(path, first, st)
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, name, target)
	if err != nil {
		return p.lost("read link", path, err)
	}
	h := p.attrs(kindSymlink, path, st)
	h.link = string(target[:n])
	return p.w.header(h)
}

// regular writes a file. What is there when it is opened counts, not what was listed.
func (p *packer) regular(parent int, name, path string, st *unix.Stat_t) error {
	fd, err := open(parent, name, unix.O_NONBLOCK|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) { // not our file and no privilege: its time of access changes
		fd, err = open(parent, name, unix.O_NONBLOCK)
	}
	if errors.Is(err, unix.EXDEV) {
		p.stats.Mounts++
		return nil
	}
	if err != nil {
		return p.lost("open", path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	if err := unix.Fstat(fd, st); err != nil {
		return fmt.Errorf("read attributes of %q: %w", shorten(path), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		p.stats.Changed++
		return nil
	}
	if first, again := p.linked(path, st); again {
		return p.hardlink(path, first, st)
	}
	h := p.attrs(kindFile, path, st)
	h.size = st.Size
	if h.xattrs, err = p.xattrs(fd); err != nil {
		return fmt.Errorf("read attributes of %q: %w", shorten(path), err)
	}
	p.stats.Bytes += st.Size
	if err := p.content(fd, h, st); err != nil {
		return fmt.Errorf("read %q: %w", shorten(path), err)
	}
	return nil
}

// linked tells whether the file was written before under another name. Overlayfs gives a
// broken hard link another inode number (fs/overlayfs/inode.c:ovl_getattr).
func (p *packer) linked(path string, st *unix.Stat_t) (first string, again bool) {
	if st.Nlink < 2 {
		return "", false
	}
	key := inode{st.Dev, st.Ino}
	if first, again = p.links[key]; !again {
		p.links[key] = path
	}
	return first, again
}

func (p *packer) hardlink(path, first string, st *unix.Stat_t) error {
	h := p.attrs(kindHardlink, path, st)
	h.link = first
	return p.w.header(h)
}

// attrs are what every entry carries.
func (p *packer) attrs(kind byte, path string, st *unix.Stat_t) header {
	p.stats.Entries++
	uid, okU := p.shift.id(st.Uid)
	gid, okG := p.shift.id(st.Gid)
	if !okU || !okG {
		p.stats.Foreign++
	}
	return header{name: path, kind: kind, mode: st.Mode & 0o7777, uid: uid, gid: gid, mtime: time.Unix(st.Mtim.Unix())}
}

// lost is for what a running guest has removed or replaced since it was listed.
func (p *packer) lost(verb, path string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO) {
		p.stats.Changed++
		return nil
	}
	return fmt.Errorf("%s %q: %w", verb, shorten(path), err)
}

// open opens one component below parent: no links, no other mounts.
func open(parent int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | flags,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	}
	return fdio.Openat2(parent, name, &how)
}

// shorten keeps messages readable when a name is made to be long.
func shorten(name string) string {
	const limit = 200
	if len(name) <= limit {
		return name
	}
	return name[:limit] + "…"
}
