package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/imagesync/unsquash"
)

// unsquash unpacks a squashfs. Its tables are at the end, so it is stored first, and
// no program sees it before verify has found that it is what Glance has recorded.
// Then unsquashfs unpacks it in confinement, and the result is checked by the rules
// that hold for archives. It is never mounted: a kernel is no place to read a file
// system that a tenant made.
func (s *Store) unsquash(ctx context.Context, in io.Reader, stage string, verify func() error) (unpack.Stats, error) {
	if _, err := os.Stat(s.o.Unsquashfs); err != nil || os.Geteuid() != 0 {
		return unpack.Stats{}, fmt.Errorf("unpack squashfs: %s (package squashfs-tools) and root are needed", s.o.Unsquashfs)
	}
	image, tree := filepath.Join(stage, "squashfs"), filepath.Join(stage, "tree")
	if err := s.spool(in, image); err != nil {
		return unpack.Stats{}, err
	}
	if err := verify(); err != nil {
		return unpack.Stats{}, err
	}
	err := unsquash.Run(ctx, unsquash.Options{
		Program: s.o.Unsquashfs, Image: image, Target: tree, Entries: s.o.MaxEntries, Bytes: s.o.MaxUnpackedBytes, Reserve: s.o.ReserveBytes,
		Judge: func(ctx context.Context) error { return s.judge(ctx, tree) },
	})
	if bad, ok := errors.AsType[*unsquash.Error](err); ok {
		return unpack.Stats{}, &refused{found: "a squashfs that cannot be unpacked: " + bad.Reason, want: acceptable}
	}
	if err != nil {
		return unpack.Stats{}, err
	}
	return unpack.Check(ctx, tree, s.limits())
}

// judge tells whether a tree that is not complete yet is too large already, or refused for another reason. What else
// may go wrong while it changes (a file is gone again) is no verdict: the check of the complete tree tells.
func (s *Store) judge(ctx context.Context, tree string) error {
	_, err := unpack.Check(ctx, tree, s.limits())
	if bad, ok := errors.AsType[*unpack.Error](err); ok {
		return bad
	}
	return nil
}

// spool writes the stream to a file, with holes for zeros, leaving the reserve free.
func (s *Store) spool(in io.Reader, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	defer file.Close() //nolint:errcheck // closed already when all went well
	out := &sparseFile{file: file}
	for {
		_, err := io.CopyN(out, in, 64<<20)
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		free, err := s.free()
		if err != nil {
			return err
		}
		if free < s.o.ReserveBytes {
			return fmt.Errorf("store image after %d bytes: %w", out.offset, unix.ENOSPC)
		}
	}
}
