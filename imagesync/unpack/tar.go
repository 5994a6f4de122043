package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Tar writes the tar stream r beneath the directory at path, which must exist and
// be empty, and reads it to its end mark. An archive without one may have lost its
// rest, and is refused. On an error the tree is incomplete.
// An *Error tells that the archive is at fault.
func Tar(ctx context.Context, r io.Reader, path string, limits Limits) (Stats, error) {
	in := &markedReader{r: r}
	return Members(ctx, &tarMembers{Reader: tar.NewReader(in), in: in}, path, limits)
}

// MemberReader gives the files of a tree one after the other, directories before
// what is in them, as a *tar.Reader does. Extended attributes are PAX records.
type MemberReader interface {
	Next() (*tar.Header, error) // io.EOF: no more
	io.Reader                   // the content of the last one
}

// HoleReader is a reader of content that knows where nothing is stored.
type HoleReader interface {
	// Hole skips the hole that is next and returns its length; 0: data is next, or the end.
	Hole() (int64, error)
}

// Members writes what m gives, as Tar does.
func Members(ctx context.Context, m MemberReader, path string, limits Limits) (Stats, error) {
	t, err := newTree(path, limits)
	if err != nil {
		return Stats{}, err
	}
	if err := t.members(ctx, m); err != nil {
		t.abort()
		return t.stats, err
	}
	return t.stats, t.finish()
}

func (t *tree) members(ctx context.Context, tr MemberReader) error {
	for seen := 0; ; seen++ {
		hdr, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, tar.ErrInsecurePath): // ours are the checks that count
		case errors.Is(err, tar.ErrHeader):
			return &Error{Reason: fmt.Sprintf("has a damaged header after %d entries", seen)}
		case errors.Is(err, io.ErrUnexpectedEOF):
			return &Error{Reason: fmt.Sprintf("is cut off after %d entries", seen)}
		case isContent(err):
			return err
		case err != nil:
			return fmt.Errorf("read archive after %d entries: %w", seen, err)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unpack %q: %w", shorten(hdr.Name), err)
		}
		if seen >= t.limits.Entries {
			return &Error{Entry: hdr.Name, Reason: fmt.Sprintf("is one more than the limit of %d entries", t.limits.Entries)}
		}
		if err := t.entry(ctx, hdr, tr); err != nil {
			return err
		}
	}
}

// tarMembers is a tar archive. Its own errors are the archive's fault.
type tarMembers struct {
	*tar.Reader
	in   *markedReader
	seen int
}

// Next implements MemberReader.
func (m *tarMembers) Next() (*tar.Header, error) {
	hdr, err := m.Reader.Next()
	switch {
	case err == nil:
		m.seen++
	case errors.Is(err, tar.ErrInsecurePath):
		m.seen++
	case m.in.err != nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader):
	case !errors.Is(err, io.EOF): // a limit of the library
		err = &Error{Reason: fmt.Sprintf("has a damaged header after %d entries (%s)", m.seen, plain(err))}
	case m.seen > 0 && m.in.zeros < endMark:
		err = &Error{Reason: fmt.Sprintf("is cut off after %d entries: it has no end mark", m.seen)}
	}
	return hdr, err
}

// Read implements io.Reader.
func (m *tarMembers) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if err != nil && m.in.err == nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = &Error{Reason: "is damaged (" + plain(err) + ")"}
	}
	return n, err
}

// plain is the text of an error of archive/tar.
func plain(err error) string { return strings.TrimPrefix(err.Error(), "archive/tar: ") }

func isContent(err error) bool {
	var content *Error
	return errors.As(err, &content)
}

// markedReader knows whether the archive or its source is at fault for an error, and how
// many zeros it gave last: an archive ends with blocks of them, which are read as headers.
type markedReader struct {
	r     io.Reader
	zeros int
	err   error // of the source, which has not just ended
}

// Read implements io.Reader.
func (m *markedReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	switch tail := p[max(0, n-endMark):n]; {
	case allZero(tail):
		m.zeros = min(m.zeros+n, endMark)
	default:
		m.zeros = len(tail) - len(bytes.TrimRight(tail, "\x00"))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}

// endMark is the size of the block of zeros that ends an archive; a second one should
// follow. The padding of a file is shorter.
const endMark = 512

// entry writes one member of the archive.
func (t *tree) entry(ctx context.Context, hdr *tar.Header, content io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // records for all that follows; GNU volume label
		return nil
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
			return &Error{Entry: hdr.Name, Reason: "is an overlayfs whiteout (character device 0:0)"}
		}
		t.stats.Devices++
		return nil
	}
	parts, err := split(hdr.Name)
	if err != nil {
		return err
	}
	t.stats.Entries++
	if hdr.Typeflag == tar.TypeLink {
		target, err := split(hdr.Linkname)
		if err != nil {
			return &Error{Entry: hdr.Name, Reason: fmt.Sprintf("is a hard link to %q, which leaves the archive", shorten(hdr.Linkname))}
		}
		return t.hardlink(hdr.Name, parts, target)
	}
	a, err := t.attrsOf(hdr)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return t.dir(hdr.Name, parts, a)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return t.file(ctx, hdr.Name, parts, a, hdr.Size, content, isSparse(hdr))
	case tar.TypeSymlink:
		return t.symlink(hdr.Name, parts, a, hdr.Linkname)
	case tar.TypeFifo:
		return t.fifo(hdr.Name, parts, a)
	}
	return &Error{Entry: hdr.Name, Reason: fmt.Sprintf("has the unknown type %q", hdr.Typeflag)}
}

func (t *tree) attrsOf(hdr *tar.Header) (attrs, error) {
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > int64(t.limits.MaxID) || int64(hdr.Gid) > int64(t.limits.MaxID) {
		return attrs{}, &Error{Entry: hdr.Name, Reason: fmt.Sprintf("belongs to %d:%d, beyond the largest id %d of a guest", hdr.Uid, hdr.Gid, t.limits.MaxID)}
	}
	xattrs, err := t.xattrsOf(hdr.Name, hdr.PAXRecords)
	if err != nil {
		return attrs{}, err
	}
	return attrs{mode: uint32(hdr.Mode & 0o7777), uid: hdr.Uid, gid: hdr.Gid, mtime: hdr.ModTime, xattrs: xattrs}, nil
}

// isSparse tells whether the archive itself has holes in this file; the reader
// gives them as zeros.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
