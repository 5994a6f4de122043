package diskimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/ext4"
)

const (
	// window is how many names of a directory are read at a time. They are then taken
	// in the order of their inodes, which is about that of their content on the disk.
	window = 512
	// maxLinkNames bounds the names that are kept to find hard links; those of a
	// Debian take some kilobytes.
	maxLinkNames = 32 << 20
	// maxDepth is that of package unpack.
	maxDepth = 256
)

// walk gives the tree of a file system in the form of an archive: unpack.MemberReader.
type walk struct {
	fs      *ext4.FS
	most    int // entries, to bound what is remembered
	stack   []level
	seen    map[uint32]struct{} // directories
	links   map[uint32]link     // files with names that are still to come
	names   int                 // bytes of names in links
	content io.Reader
	started bool
}

// level is one directory that is being read.
type level struct {
	dir  *ext4.Dir
	path string // with a slash at its end
	next []ext4.Entry
}

// link is a file of which a name was written.
type link struct {
	path string
	left uint16 // names that are to come
}

func newWalk(fs *ext4.FS, most int) *walk {
	return &walk{fs: fs, most: most, seen: map[uint32]struct{}{}, links: map[uint32]link{}}
}

// Next gives the next file. Its content is read from the walk.
func (w *walk) Next() (*tar.Header, error) {
	w.content = nil
	if !w.started {
		w.started = true
		return w.member(ext4.Entry{Inode: ext4.RootInode, Name: "."}, "")
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		if len(top.next) == 0 {
			if err := top.fill(); err != nil {
				return nil, err
			}
			if len(top.next) == 0 {
				w.stack = w.stack[:len(w.stack)-1]
				continue
			}
		}
		e := top.next[0]
		top.next = top.next[1:]
		hdr, err := w.member(e, top.path)
		if hdr != nil || err != nil {
			return hdr, err
		}
	}
	return nil, io.EOF
}

// fill reads the next names of the directory.
func (l *level) fill() error {
	names := make([]ext4.Entry, 0, window)
	for len(names) < window {
		e, err := l.dir.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		names = append(names, e)
	}
	slices.SortStableFunc(names, func(a, b ext4.Entry) int {
		switch {
		case a.Inode < b.Inode:
			return -1
		case a.Inode > b.Inode:
			return 1
		}
		return 0
	})
	l.next = slices.Clip(names)
	return nil
}

// member describes one name; nil: it is left out.
func (w *walk) member(e ext4.Entry, dir string) (*tar.Header, error) {
	path := dir + e.Name
	i, err := w.fs.Inode(e.Inode, path)
	if err != nil {
		return nil, err
	}
	if keeps := i.Type() == ext4.TypeFile || i.Type() == ext4.TypeSymlink || i.Type() == ext4.TypeFifo; keeps && i.Links > 1 {
		if first, ok := w.links[i.Number]; ok {
			w.linked(i, first)
			return &tar.Header{Typeflag: tar.TypeLink, Name: path, Linkname: first.path}, nil
		}
		if err := w.remember(i, path); err != nil {
			return nil, err
		}
	}
	hdr := &tar.Header{
		Name: path, Mode: int64(i.Mode &^ ext4.TypeMask), Uid: int(i.UID), Gid: int(i.GID), ModTime: i.ModTime,
	}
	attrs, err := w.fs.Xattrs(i)
	if err != nil {
		return nil, err
	}
	if len(attrs) > 0 {
		hdr.PAXRecords = make(map[string]string, len(attrs))
		for name, value := range attrs {
			hdr.PAXRecords["SCHILY.xattr."+name] = value
		}
	}
	return w.typed(hdr, i)
}

// typed completes the header with what depends on the type.
func (w *walk) typed(hdr *tar.Header, i *ext4.Inode) (*tar.Header, error) {
	var err error
	switch i.Type() {
	case ext4.TypeDir:
		hdr.Typeflag = tar.TypeDir
		err = w.enter(i, hdr.Name)
	case ext4.TypeFile:
		hdr.Typeflag, hdr.Size = tar.TypeReg, i.Size
		if w.content, err = w.fs.Open(i); err == nil && hdr.Name == "./etc/fstab" {
			err = w.sanitise(hdr)
		}
	case ext4.TypeSymlink:
		hdr.Typeflag = tar.TypeSymlink
		hdr.Linkname, err = w.fs.Readlink(i)
	case ext4.TypeFifo:
		hdr.Typeflag = tar.TypeFifo
	case ext4.TypeChar, ext4.TypeBlock:
		major, minor := i.Device()
		hdr.Typeflag, hdr.Devmajor, hdr.Devminor = tar.TypeChar, int64(major), int64(minor)
		if i.Type() == ext4.TypeBlock {
			hdr.Typeflag = tar.TypeBlock
		}
	case ext4.TypeSocket: // made anew by whoever listens
		return nil, nil //nolint:nilnil // documented at member
	default:
		err = &ext4.Error{Found: fmt.Sprintf("has inode %d of the unknown type %#x", i.Number, i.Type())}
	}
	return hdr, err
}

// enter makes a directory the one that is read next.
func (w *walk) enter(i *ext4.Inode, path string) error {
	if _, again := w.seen[i.Number]; again {
		return &ext4.Error{Found: fmt.Sprintf("has directory %d in two places or below itself, the second time as %q", i.Number, shorten(path))}
	}
	if len(w.stack) > maxDepth || len(w.seen) > w.most {
		return &ext4.Error{Found: fmt.Sprintf("has more than %d levels or %d directories, at %q", maxDepth, w.most, shorten(path))}
	}
	w.seen[i.Number] = struct{}{}
	d, err := w.fs.OpenDir(i)
	if err != nil {
		return err
	}
	w.stack = append(w.stack, level{dir: d, path: path + "/"})
	return nil
}

// remember keeps the first name of a file that has several.
func (w *walk) remember(i *ext4.Inode, path string) error {
	if w.names += len(path); w.names > maxLinkNames {
		return &ext4.Error{Found: fmt.Sprintf("has hard-linked files whose names take more than %d bytes", maxLinkNames), Want: "the root directory as a tar archive"}
	}
	w.links[i.Number] = link{path: path, left: i.Links - 1}
	return nil
}

// linked counts a further name and forgets the file with the last one.
func (w *walk) linked(i *ext4.Inode, l link) {
	if l.left--; l.left > 0 {
		w.links[i.Number] = l
		return
	}
	delete(w.links, i.Number)
	w.names -= len(l.path)
}

// Read gives the content of the current file.
func (w *walk) Read(p []byte) (int, error) {
	if w.content == nil {
		return 0, io.EOF
	}
	return w.content.Read(p)
}

// Hole implements unpack.HoleReader.
func (w *walk) Hole() (int64, error) {
	if f, ok := w.content.(*ext4.File); ok {
		return f.Hole()
	}
	return 0, nil
}

// maxFstab is far beyond any real one.
const maxFstab = 1 << 20

// sanitise replaces the content of /etc/fstab, whose devices a container does not have.
func (w *walk) sanitise(hdr *tar.Header) error {
	if hdr.Size > maxFstab {
		return nil // as it is
	}
	text, err := io.ReadAll(w.content)
	if err != nil {
		return err
	}
	text = containerFstab(text)
	hdr.Size, w.content = int64(len(text)), bytes.NewReader(text)
	return nil
}

func shorten(path string) string {
	const most = 200
	if len(path) > most {
		return path[:most] + "…"
	}
	return path
}
