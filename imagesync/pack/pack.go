// Package pack writes a directory tree as a tar archive that LXD, Incus, GNU tar
// and package unpack read: a root file system alone, or a unified image with
// metadata.yaml, templates/ and rootfs/.
//
// The tree may belong to a guest that is running and hostile. Nothing is resolved by
// path: each component is opened from its parent's descriptor, without following
// links and without crossing mounts, and only regular files and directories are
// opened at all. A file that changes while it is read gives an archive with some
// state of that file, never a damaged archive.
//
// Kept: owners (shifted back to the guest's ids), modes, times to the nanosecond,
// symbolic and hard links, fifos, holes, user.* attributes, file capabilities and
// POSIX access lists. Left out and counted: device nodes, sockets, attributes of the
// host's security modules and of overlayfs. The same tree always gives the same bytes.
package pack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how a tree becomes an archive. The zero value is a zstd archive of the tree alone.
type Options struct {
	Compression Compression
	XZ          string // path of the xz program; empty: /usr/bin/xz
	Shift       Shift
	// Metadata is the text of metadata.yaml; nil: the archive is the root file system alone.
	Metadata []byte
	// Templates is the directory of the image's templates; empty: none. Only with Metadata.
	Templates string
	// Progress is called now and then with the bytes of file content packed so far; nil: not.
	Progress func(bytes int64)
}

// Shift maps the owners on disk to those in the archive: the id Base becomes 0. The zero
// value keeps every id.
type Shift struct {
	Base  uint32 // host id of the guest's root
	Count uint32 // ids that the guest has
}

// Overflow is the owner in the archive of what belongs to nobody inside the guest, as
// the guest itself sees it (/proc/sys/kernel/overflowuid).
const Overflow = 65534

// id gives an owner's id in the archive; false: the guest has no such id.
func (s Shift) id(host uint32) (uint32, bool) {
	switch {
	case s.Count == 0:
		return host, true
	case host < s.Base || host-s.Base >= s.Count:
		return Overflow, false
	}
	return host - s.Base, true
}

// Stats tells what was written and what was left out.
type Stats struct {
	Entries       int   // files, directories, links and fifos
	Bytes         int64 // bytes of file content, holes included
	Devices       int   // device nodes left out
	Sockets       int   // sockets left out
	Mounts        int   // mount points, written as what they hide is not
	Foreign       int   // entries whose owner the guest has no id for
	Changed       int   // files that changed or vanished while they were read
	SkippedXattrs int   // extended attributes left out
}

// Error tells that the tree cannot be represented.
type Error struct {
	Entry  string // path below the tree
	Reason string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("pack %q: %s", e.Entry, e.Reason) }

const (
	// bufferSize is one read of a large file and one write to the compressor.
	bufferSize = 256 << 10
	// maxDepth bounds the open directories; unpack takes no deeper archive.
	maxDepth = 250
)

// Write packs the tree at root into w. On an error what w has is incomplete and of no use.
func Write(ctx context.Context, w io.Writer, root string, o Options) (Stats, error) {
	if ctx.Err() != nil {
		return Stats{}, fmt.Errorf("pack %s: %w", root, context.Cause(ctx))
	}
	z, err := newCompressor(ctx, w, o)
	if err != nil {
		return Stats{}, fmt.Errorf("pack %s: %w", root, err)
	}
	out := bufio.NewWriterSize(z, bufferSize)
	p := &packer{ctx: ctx, w: &archive{w: out}, o: o, buf: make([]byte, bufferSize), links: map[inode]string{}}
	err = p.image(root)
	if err == nil {
		err = p.w.end()
	}
	if err == nil {
		err = out.Flush()
	}
	// A compressor that failed explains the broken pipe before it.
	if cerr := z.close(err != nil); cerr != nil && (err == nil || errors.Is(err, unix.EPIPE) || errors.Is(err, io.ErrClosedPipe)) {
		err = cerr
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return p.stats, fmt.Errorf("pack %s: %w", root, err)
	}
	return p.stats, nil
}

// inode names a file with several links.
type inode struct{ dev, ino uint64 }

// packer is one run of Write.
type packer struct {
	ctx    context.Context //nolint:containedctx // lives for one Write
	w      *archive
	o      Options
	shift  Shift // of the tree that is walked
	buf    []byte
	links  map[inode]string // first name of each file with several
	packed int64            // bytes of content written, holes not counted
	stats  Stats
}

// image writes the members in the order in which LXD looks for them.
func (p *packer) image(root string) error {
	prefix := ""
	if p.o.Metadata != nil {
		prefix = "rootfs/"
		stamp, err := modTime(root)
		if err != nil {
			return err
		}
		h := header{name: "metadata.yaml", kind: kindFile, mode: 0o644, size: int64(len(p.o.Metadata)), mtime: stamp}
		if err := p.w.file(h, p.o.Metadata); err != nil {
			return err
		}
		if p.o.Templates != "" {
			if err := p.tree(p.o.Templates, "templates/", Shift{}); err != nil {
				return err
			}
		}
	}
	return p.tree(root, prefix, p.o.Shift)
}

// tree writes a directory and all below it under prefix, which ends in a slash or is empty.
func (p *packer) tree(path, prefix string, shift Shift) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("read attributes: %w", err)
	}
	p.shift = shift
	name := prefix
	if name == "" {
		name = "./"
	}
	if err := p.entry(fd, name, &st); err != nil {
		return err
	}
	return p.members(fd, prefix, 0)
}

func modTime(path string) (time.Time, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return time.Time{}, fmt.Errorf("read attributes: %w", err)
	}
	return time.Unix(st.Mtim.Unix()), nil
}
