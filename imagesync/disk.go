package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync/diskimage"
	"github.com/compute-agent/compute-agent/imagesync/unpack"
)

// checkDeclared compares what an image is with its disk_format. Nova looks as well
// (nova/virt/images.py): an image that is something else than it says is made to
// get one program to check it and another to open it.
func checkDeclared(declared string, f format, name string) error {
	if declared == "" || f != formatQCOW2 && declared != "qcow2" || f == formatQCOW2 && declared == "qcow2" {
		return nil
	}
	want := "disk_format qcow2"
	if f != formatQCOW2 {
		want = "a qcow2 disk image, or the disk_format that fits"
	}
	return &refused{found: fmt.Sprintf("%s with disk_format %q", name, declared), want: want, certain: true}
}

// copyDisk copies the root file system out of a disk image. The image is read in any
// order, so it is stored first, and nothing looks into it before verify has found
// that it is what Glance has recorded.
func (s *Store) copyDisk(ctx context.Context, f format, in io.Reader, stage, arch string, verify func() error) (unpack.Stats, error) {
	path := filepath.Join(stage, "disk")
	if err := s.spool(in, path); err != nil {
		return unpack.Stats{}, err
	}
	if err := verify(); err != nil {
		return unpack.Stats{}, err
	}
	file, err := os.Open(path)
	if err != nil {
		return unpack.Stats{}, fmt.Errorf("open disk image: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	info, err := file.Stat()
	if err != nil {
		return unpack.Stats{}, fmt.Errorf("open disk image: %w", err)
	}
	img := diskimage.Image{File: file, Size: info.Size(), Format: diskimage.Raw, Arch: arch, Space: s.checkFree}
	if f == formatQCOW2 {
		img.Format = diskimage.QCOW2
	}
	stats, err := diskimage.Copy(ctx, img, filepath.Join(stage, "tree"), s.limits())
	return stats, explainDisk(err)
}

// explainDisk names the disk image in errors of its content.
func explainDisk(err error) error {
	if bad, ok := errors.AsType[*diskimage.Error](err); ok {
		if bad.Want == "" {
			bad.Want = "an undamaged disk image, or " + acceptable
		}
		return &refused{found: bad.Found, want: bad.Want}
	}
	if entry, ok := errors.AsType[*unpack.Error](err); ok {
		return &refused{found: "a disk image that cannot be used: its " + entry.Error(), want: acceptable}
	}
	return err
}

// checkFree refuses to write more than fits.
func (s *Store) checkFree(bytes int64) error {
	free, err := s.free()
	if err != nil {
		return err
	}
	if need := bytes + s.o.ReserveBytes; free < need {
		return fmt.Errorf("%d bytes are free, %d needed: %w", free, need, unix.ENOSPC)
	}
	return nil
}

// sparseFile writes a file and leaves holes where zeros would be.
type sparseFile struct {
	file   *os.File
	offset int64
}

// holeUnit is the unit in which zeros become holes.
const holeUnit = 4096

var zeros [holeUnit]byte

// Write implements io.Writer.
func (f *sparseFile) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		skip := zeroUnits(p[done:])
		done += skip
		data := 0
		for done+data < len(p) && zeroUnits(p[done+data:]) == 0 {
			data += min(holeUnit, len(p)-done-data)
		}
		if data > 0 {
			if _, err := f.file.WriteAt(p[done:done+data], f.offset+int64(done)); err != nil {
				return done, err
			}
		}
		done += data
	}
	f.offset += int64(len(p))
	return len(p), nil
}

// zeroUnits counts the bytes of whole units of zeros at the beginning.
func zeroUnits(p []byte) int {
	n := 0
	for n+holeUnit <= len(p) && [holeUnit]byte(p[n:]) == zeros {
		n += holeUnit
	}
	return n
}

// Close sets the size and closes the file.
func (f *sparseFile) Close() error {
	return errors.Join(f.file.Truncate(f.offset), f.file.Close())
}
