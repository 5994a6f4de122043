// Package fdio reads and writes files by their descriptors, as code has to that walks trees whose links lead anywhere: there it goes
// from an open directory to a name in it, and never by a path.
package fdio

import (
	"errors"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// OpenDir opens a directory below an open one. It does not follow a link.
func OpenDir(parent int, name string) (int, error) {
	return unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// maxOpens bounds the attempts of Openat2: a guest may rename without end.
const maxOpens = 1000

// Openat2 is openat2(2), asked again when a signal interrupts it, or a rename anywhere on the host, which keeps the kernel from being sure
// about a path with ".." in it.
func Openat2(dir int, name string, how *unix.OpenHow) (fd int, err error) {
	for range maxOpens {
		fd, err = unix.Openat2(dir, name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// ReadNames lists a directory through a descriptor of its own, since reading moves the offset.
func ReadNames(dir int) ([]string, error) {
	fd, err := OpenDir(dir, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close() //nolint:errcheck // only read
	return f.Readdirnames(-1)
}

// ReadAt fills p from an offset. It reads less only where the file ends.
func ReadAt(fd int, p []byte, offset int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], offset+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// WriteAt writes p at an offset. What it leaves out before is a hole.
func WriteAt(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// Extent is a part of a file that is not a hole.
type Extent struct{ Begin, End int64 }

// Extents are the parts of a file's first size bytes that are not holes. An error is the last.
func Extents(fd int, size int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for offset := int64(0); offset < size; {
			begin, err := unix.Seek(fd, offset, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) || err == nil && begin >= size {
				return // only a hole is left
			}
			var end int64
			if err == nil {
				end, err = unix.Seek(fd, begin, unix.SEEK_HOLE)
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if !yield(Extent{begin, min(end, size)}, nil) {
				return
			}
			offset = end
		}
	}
}
