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

// unsquash unpacks a squashfs. Its tables are at the end, so it is stored first;
// then the program unpacks it in confinement, and the result is checked by the
// rules that hold for archives.
func (s *Store) unsquash(ctx context.Context, in io.Reader, stage string) (unpack.Stats, error) {
	if _, err := os.Stat(s.o.Unsquashfs); err != nil || os.Geteuid() != 0 {
		return unpack.Stats{}, fmt.Errorf("unpack squashfs: %s (package squashfs-tools) and root are needed", s.o.Unsquashfs)
	}
	image, tree := filepath.Join(stage, "squashfs"), filepath.Join(stage, "tree")
	if err := s.spool(in, image); err != nil {
		return unpack.Stats{}, err
	}
	err := unsquash.Run(ctx, unsquash.Options{
		Program: s.o.Unsquashfs, Image: image, Target: tree, Bytes: s.o.MaxUnpackedBytes, Reserve: s.o.ReserveBytes,
	})
	if bad, ok := errors.AsType[*unsquash.Error](err); ok {
		return unpack.Stats{}, &refused{found: "a squashfs that cannot be unpacked: " + bad.Output, want: acceptable}
	}
	if err != nil {
		return unpack.Stats{}, err
	}
	return unpack.Check(ctx, tree, s.limits())
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
