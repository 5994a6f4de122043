// Package diskimage copies the root file system out of an untrusted disk image.
//
// The kernel never sees the image: sub-packages read qcow2 files, partition tables
// and ext2, ext3 and ext4 in Go, and what they find is written by package unpack,
// with the confinement, the limits and the refusals that hold for archives.
//
// It runs in the agent's own process, as the tar reader does. What a child would
// give is had without: the readers are memory-safe, and a panic is caught and is an
// error of the image; what they keep in memory is bounded by constants (two bits a
// cluster of the file, a few caches, the names of hard links and the journal's
// blocks up to a limit), recursion is bounded by the depth of directories; the
// context ends every loop, since each comes by the disk; and the writer, which is
// the one that touches the host, would have the same rights in a child.
package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/qcow2"
	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Format is how the disk is stored in the file.
type Format string

// The formats, as Glance calls them.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// Error tells that the image cannot be used.
type Error struct {
	Found string // what it is
	Want  string // what would work; empty: an undamaged image
}

// Error implements error.
func (e *Error) Error() string { return "found " + e.Found }

// Image is a file with a disk in it.
type Image struct {
	File   io.ReaderAt
	Size   int64 // of the file
	Format Format
	Arch   string // the host's architecture in Nova's spelling; empty: any
	// Space is asked before anything is written, with the bytes that the content takes.
	Space func(bytes int64) error
}

// Copy writes the root file system of the image beneath the directory at path, which
// must exist and be empty. An *Error or an *unpack.Error: the image is at fault.
func Copy(ctx context.Context, img Image, path string, limits unpack.Limits) (stats unpack.Stats, err error) {
	defer func() {
		if p := recover(); p != nil {
			reqctx.Log(ctx).WithField("panic", fmt.Sprint(p)).WithField("stack", string(debug.Stack())).Error("disk image reader has a fault")
			err = &Error{Found: "a disk that its reader cannot cope with"}
		}
	}()
	stats, err = copyRoot(ctx, img, path, limits)
	if bad, ok := asContent(err); ok {
		return stats, bad
	}
	if q, ok := errors.AsType[*qcow2.Error](err); ok {
		return stats, &Error{Found: "a qcow2 image " + q.Found, Want: q.Want}
	}
	return stats, err
}

func copyRoot(ctx context.Context, img Image, path string, limits unpack.Limits) (unpack.Stats, error) {
	file := &ended{ctx: ctx, r: img.File}
	var disk io.ReaderAt = file
	size := img.Size
	if img.Format == QCOW2 {
		q, err := qcow2.Open(ctx, file, img.Size)
		if err != nil {
			return unpack.Stats{}, err
		}
		defer q.Close()
		disk, size = q, q.Size()
	}
	fs, root, err := chooseRoot(ctx, disk, size, img.Arch)
	if err != nil {
		return unpack.Stats{}, err
	}
	reqctx.Log(ctx).WithField("partition", root.Number).WithField("label", fs.Label()).WithField("used_bytes", fs.Used()).Debug("root file system of disk image found")
	if img.Space != nil {
		if err := img.Space(min(fs.Used(), limits.Bytes)); err != nil {
			return unpack.Stats{}, err
		}
	}
	return unpack.Members(ctx, newWalk(fs, limits.Entries), path, limits)
}

// ended is a file that cannot be read any more when its context has ended. All loops
// over an image come by here.
type ended struct {
	ctx context.Context //nolint:containedctx // io.ReaderAt has no parameter for it; lives for one import
	r   io.ReaderAt
}

// ReadAt implements io.ReaderAt.
func (e *ended) ReadAt(p []byte, offset int64) (int, error) {
	if e.ctx.Err() != nil {
		return 0, context.Cause(e.ctx)
	}
	return e.r.ReadAt(p, offset)
}
