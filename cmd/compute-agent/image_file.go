package main

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// output is where an archive goes. Before commit nobody sees it.
type output interface {
	io.Writer
	commit() error
	discard() error
}

// stream is an output that is seen as it is written.
type stream struct{ io.Writer }

func (stream) commit() error  { return nil }
func (stream) discard() error { return nil }

// file is an output without a name until it is complete, so that whatever ends the
// command leaves nothing behind.
type file struct {
	*os.File

	target string
	name   string // of the file while it is written; empty: it has none
	force  bool
}

// createFile opens an output beside its target.
func createFile(target string, force bool) (*file, error) {
	if _, err := os.Lstat(target); err == nil && !force {
		return nil, fmt.Errorf("%s exists; give another FILE or --force", target)
	}
	f, err := os.OpenFile(filepath.Dir(target), unix.O_TMPFILE|os.O_WRONLY, 0o600)
	if err == nil {
		return &file{File: f, target: target, force: force}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, err
	}
	f, err = os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".*") // a file system without nameless files
	if err != nil {
		return nil, err
	}
	return &file{File: f, target: target, name: f.Name(), force: force}, nil
}

// commit brings the data to the disk and gives the file its name.
func (f *file) commit() error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.place(); err != nil {
		return err
	}
	f.name = ""
	return f.Close()
}

func (f *file) place() error {
	if f.name == "" {
		at := f.target
		if f.force {
			at = filepath.Join(filepath.Dir(f.target), "."+filepath.Base(f.target)+"."+strconv.Itoa(os.Getpid()))
		}
		err := unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.AT_FDCWD, at, unix.AT_SYMLINK_FOLLOW)
		if err != nil {
			return fmt.Errorf("name %s: %w", at, err)
		}
		if !f.force {
			return nil
		}
		f.name = at
	}
	if f.force {
		return os.Rename(f.name, f.target)
	}
	if err := os.Link(f.name, f.target); err != nil {
		return err
	}
	return os.Remove(f.name)
}

func (f *file) discard() error {
	err := f.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if f.name != "" {
		err = errors.Join(err, os.Remove(f.name))
	}
	return err
}

// summed counts and hashes what is written.
type summed struct {
	w    io.Writer
	hash hash.Hash
	n    int64
}

// Write implements io.Writer.
func (s *summed) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	_, _ = s.hash.Write(b[:n]) // never fails
	s.n += int64(n)
	return n, err
}
