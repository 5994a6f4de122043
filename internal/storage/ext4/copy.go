package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// copyChunk bounds what is copied between two looks at the context.
const copyChunk = 64 << 20

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
	if err := mount.CheckRoom(target, st.Blocks*512); err != nil {
		return err
	}
	if err := target.Truncate(st.Size); err != nil {
		return fmt.Errorf("size disk: %w", err)
	}
	return copyExtents(ctx, source, target, st.Size)
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
