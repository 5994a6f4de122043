package ext4

import (
	"bytes"
	"errors"
	"io"
)

// File reads the content of an inode.
type File struct {
	fs     *FS
	inode  *Inode
	offset int64
	run    run // from offset's block on; count 0: to be looked up
	inline []byte
}

// Open gives the content of a file, link or directory from its beginning.
func (fs *FS) Open(i *Inode) (*File, error) {
	f := &File{fs: fs, inode: i}
	if i.flags&flagInlineData != 0 {
		data, err := fs.inlineData(i)
		if err != nil {
			return nil, err
		}
		// mkfs writes files of holes with nothing inline; Linux reads zeros there (fs/ext4/inline.c:ext4_readpage_inline).
		if i.Size > int64(len(data)) && i.Type() != TypeFile {
			return nil, bad("has inode %d of %d bytes with inline data of %d", i.Number, i.Size, len(data))
		}
		f.inline = data[:min(i.Size, int64(len(data)))]
	}
	return f, nil
}

// inlineData is content that is stored in the inode: first in the place of the
// block numbers, then in an attribute.
func (fs *FS) inlineData(i *Inode) ([]byte, error) {
	data := i.data[:]
	if i.Size > int64(len(data)) {
		attrs, err := fs.attributes(i)
		if err != nil {
			return nil, err
		}
		data = append(bytes.Clone(data), attrs["system.data"]...)
	}
	return data, nil
}

// locate looks up where the content at the offset is.
func (f *File) locate() error {
	if f.run.count > 0 {
		return nil
	}
	var err error
	f.run, err = f.fs.mapBlock(f.inode, uint64(f.offset)>>f.fs.sb.blockBits) //nolint:gosec // positive
	return err
}

// left is how many bytes of the current run are left, not beyond the file's end.
func (f *File) left() int64 {
	bits := f.fs.sb.blockBits
	within := f.offset & int64(f.fs.sb.blockSize-1)
	if f.run.count >= uint64(1)<<(62-bits) {
		return f.inode.Size - f.offset
	}
	return min(int64(f.run.count)<<bits-within, f.inode.Size-f.offset) //nolint:gosec // checked above
}

// advance moves on within the current run.
func (f *File) advance(n int64) {
	bits := f.fs.sb.blockBits
	blocks := uint64((f.offset+n)>>bits - f.offset>>bits) //nolint:gosec // positive
	f.offset += n
	f.run.count -= min(blocks, f.run.count)
	if f.run.first != 0 {
		f.run.first += blocks
	}
}

// Hole skips a part that takes no room and returns its length; 0: data is next, or the end.
func (f *File) Hole() (int64, error) {
	if f.offset >= f.inode.Size || f.offset < int64(len(f.inline)) {
		return 0, nil
	}
	if f.inline != nil {
		n := f.inode.Size - f.offset
		f.offset = f.inode.Size
		return n, nil
	}
	if err := f.locate(); err != nil || f.run.written {
		return 0, err
	}
	n := f.left()
	f.advance(n)
	return n, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if f.offset >= f.inode.Size {
		return 0, io.EOF
	}
	if f.inline != nil {
		if f.offset >= int64(len(f.inline)) {
			p = p[:min(int64(len(p)), f.inode.Size-f.offset)]
			clear(p)
			f.offset += int64(len(p))
			return len(p), nil
		}
		n := copy(p, f.inline[f.offset:])
		f.offset += int64(n)
		return n, nil
	}
	if err := f.locate(); err != nil {
		return 0, err
	}
	n := min(int64(len(p)), f.left())
	if f.run.written {
		bits := f.fs.sb.blockBits
		at := int64(f.run.first)<<bits + f.offset&int64(f.fs.sb.blockSize-1) //nolint:gosec // below the size of the disk
		if err := readFull(f.fs.disk, p[:n], at); err != nil {
			return 0, err
		}
	} else {
		clear(p[:n])
	}
	f.advance(n)
	return int(n), nil
}

// maxLink is the longest target that Linux follows.
const maxLink = 4095

// Readlink gives the target of a symbolic link.
func (fs *FS) Readlink(i *Inode) (string, error) {
	if i.Size > maxLink {
		return "", bad("has inode %d, a symbolic link of %d bytes", i.Number, i.Size)
	}
	target := make([]byte, i.Size)
	if fs.isFastLink(i) {
		if i.Size > int64(len(i.data)) {
			return "", bad("has inode %d, a symbolic link of %d bytes without a block", i.Number, i.Size)
		}
		copy(target, i.data[:])
	} else {
		f, err := fs.Open(i)
		if err != nil {
			return "", err
		}
		if _, err := io.ReadFull(f, target); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return "", bad("has inode %d, a symbolic link with a NUL byte in its target", i.Number)
	}
	return string(target), nil
}

// isFastLink tells whether the target is in the place of the block numbers: no
// block but that of attributes is in use (Linux fs/ext4/inode.c:ext4_inode_is_fast_symlink).
func (fs *FS) isFastLink(i *Inode) bool {
	if i.flags&(flagInlineData|flagExtents) != 0 {
		return false
	}
	own := i.blocks
	if i.acl != 0 {
		own -= min(own, fs.sb.blockBytes()/512)
	}
	return own == 0
}
