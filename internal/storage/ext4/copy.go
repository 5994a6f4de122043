package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	// copyChunk bounds what is copied between two looks at the context.
	copyChunk = 64 << 20
	// copyReserve is what a copy leaves free on the host: guests write meanwhile.
	copyReserve = 1 << 30
)

// Copy makes the sparse file to with the content of the file from: by a clone where the host's file
// system shares blocks, else by copying the blocks that are not holes. storage.ErrNoSpace: the copy would
// not leave enough room; nothing was written then. Nothing is left behind when it fails.
func Copy(ctx context.Context, from, to string) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("open disk: %w", err)
	}
	defer source.Close() //nolint:errcheck // only read
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	defer func() {
		if err = errors.Join(err, target.Close()); err != nil {
			_ = os.Remove(to)
		}
	}()
	if unix.IoctlFileClone(int(target.Fd()), int(source.Fd())) == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(source.Fd()), &st); err != nil {
		return fmt.Errorf("look at disk: %w", err)
	}
	if err := CheckRoom(target, st.Blocks*512); err != nil {
		return err
	}
	if err := target.Truncate(st.Size); err != nil {
		return fmt.Errorf("size disk: %w", err)
	}
	return copyExtents(ctx, source, target, st.Size)
}

// CheckRoom refuses a copy of that many bytes to the file system of target that would not leave enough room: storage.ErrNoSpace.
func CheckRoom(target *os.File, need int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(target.Fd()), &fs); err != nil {
		return fmt.Errorf("look at file system: %w", err)
	}
	free := int64(fs.Bavail) * fs.Bsize //nolint:gosec // far below 2^63
	if free-need < copyReserve {
		return fmt.Errorf("%w: a copy of %d bytes does not leave %d of %d free", storage.ErrNoSpace, need, copyReserve, free)
	}
	return nil
}

// copyExtents copies what is not a hole.
func copyExtents(ctx context.Context, source, target *os.File, size int64) error {
	in, out := int(source.Fd()), int(target.Fd())
	for e, err := range fdio.Extents(in, size) {
		if err != nil {
			return fmt.Errorf("find data of disk: %w", err)
		}
		start, end := e.Begin, e.End
		for start < end {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			from, to := start, start
			n, err := unix.CopyFileRange(in, &from, out, &to, int(min(end-start, copyChunk)), 0)
			if err != nil {
				return fmt.Errorf("copy disk: %w", err)
			}
			if n == 0 { // shorter than it was
				return nil
			}
			start += int64(n)
		}
	}
	return nil
}

// Sync writes to disk what the file system mounted at path still has in memory.
func Sync(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open file system: %w", err)
	}
	defer dir.Close() //nolint:errcheck // only read
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("write back file system at %s: %w", path, err)
	}
	return nil
}
