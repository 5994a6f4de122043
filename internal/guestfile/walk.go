package guestfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Entry is something below a directory of a guest's.
type Entry struct {
	Name string // below the directory; "." is the directory itself
	Info
	Link    string // where a link leads, in the guest's words
	Skipped error  // why it is neither a file nor a link nor a directory that can be read

	path *os.File
	st   unix.Stat_t
}

// Open opens a regular file to read, while it is visited.
func (e *Entry) Open() (*os.File, error) {
	f, err := open(e.path, e.st)
	return f, wrap("open", e.Name, err)
}

// Walk visits a directory and all below it, each directory before what is in it, names in order. Links below are visited and not followed.
func (r *Root) Walk(name string, visit func(e *Entry) error) error {
	top, st, err := r.find(name)
	if err != nil {
		return err
	}
	defer top.Close() //nolint:errcheck // only a path
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return wrap("read", name, unix.ENOTDIR)
	}
	if err := visit(&Entry{Name: ".", Info: describe(st)}); err != nil {
		return err
	}
	w := walker{top: top, visit: visit}
	for w.ahead = []string{"."}; len(w.ahead) > 0; {
		next := w.ahead[len(w.ahead)-1]
		w.ahead = w.ahead[:len(w.ahead)-1]
		if err := w.directory(next); err != nil {
			return err
		}
	}
	return nil
}

type walker struct {
	top   *os.File
	visit func(e *Entry) error
	ahead []string // directories that were visited and not read
}

// directory visits what is in one.
func (w *walker) directory(dir string) error {
	// No name is followed: what is read is what was visited, or something else below the top.
	f, err := openat2(w.top, dir, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err == nil {
		_, err = look(f)
	}
	var names []string
	if err == nil {
		names, err = f.Readdirnames(-1)
	}
	if f != nil {
		defer f.Close() //nolint:errcheck // only read
	}
	if err != nil {
		return w.visit(&Entry{Name: dir, Skipped: err})
	}
	slices.Sort(names)
	var below []string
	for _, name := range names {
		full := path.Join(dir, name)
		goOn, err := w.entry(f, name, full)
		if err != nil {
			return err
		}
		if goOn {
			below = append(below, full)
		}
	}
	slices.Reverse(below)
	w.ahead = append(w.ahead, below...)
	return nil
}

// entry visits a name of a directory and tells whether it is one to go on with.
func (w *walker) entry(dir *os.File, name, full string) (goOn bool, err error) {
	f, err := openat2(dir, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // gone meanwhile
	}
	if err != nil {
		return false, w.visit(&Entry{Name: full, Skipped: err})
	}
	defer f.Close() //nolint:errcheck // only a path
	st, err := look(f)
	if err != nil {
		return false, w.visit(&Entry{Name: full, Skipped: err})
	}
	e := &Entry{Name: full, Info: describe(st), path: f, st: st}
	switch {
	case e.Mode&fs.ModeSymlink != 0:
		e.Link, e.Skipped = readLink(f, "")
	case e.Mode&fs.ModeIrregular != 0:
		e.Skipped = ErrNotRegular
	}
	return e.Mode.IsDir(), w.visit(e)
}

// readLink tells where a link leads.
func readLink(dir *os.File, name string) (string, error) {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, target)
	if err != nil {
		return "", err
	}
	if n == len(target) {
		return "", fmt.Errorf("read link: %w", unix.ENAMETOOLONG)
	}
	return string(target[:n]), nil
}
