package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Entry is one name in a directory.
type Entry struct {
	Inode uint32
	Name  string
}

// Dir reads a directory. Hash trees are read as the list that they are as well.
type Dir struct {
	fs      *FS
	inode   *Inode
	content *File
	block   []byte  // of the directory, owned
	at      int     // in block
	inline  *[]byte // the second part of an inline directory
}

// OpenDir begins to read a directory.
func (fs *FS) OpenDir(i *Inode) (*Dir, error) {
	if i.Type() != TypeDir {
		return nil, bad("has inode %d, which is no directory", i.Number)
	}
	d := &Dir{fs: fs, inode: i}
	var err error
	if d.content, err = fs.Open(i); err != nil {
		return nil, err
	}
	if data := d.content.inline; data != nil {
		// The parent's number, entries up to the end of the block numbers, entries in the attribute.
		if len(data) < len(i.data) {
			return nil, bad("has inode %d, a directory of %d bytes", i.Number, len(data))
		}
		rest := data[len(i.data):]
		d.block, d.inline = data[4:len(i.data)], &rest
	}
	return d, nil
}

// Next gives the next name; io.EOF: no more. Names are not empty, "." or "..", and
// have neither a slash nor a NUL.
func (d *Dir) Next() (Entry, error) {
	for {
		if d.at >= len(d.block) {
			if err := d.fill(); err != nil {
				return Entry{}, err
			}
			continue
		}
		e, err := d.entry()
		if err != nil {
			return Entry{}, err
		}
		if e.Inode == 0 || e.Name == "." || e.Name == ".." {
			continue
		}
		if e.Name == "" || strings.ContainsAny(e.Name, "/\x00") {
			return Entry{}, bad("has directory %d with the name %s", d.inode.Number, quote(e.Name))
		}
		return e, nil
	}
}

// fill reads the next block. A sound directory has no holes.
func (d *Dir) fill() error {
	d.at = 0
	if d.content.inline != nil {
		if d.inline == nil {
			return io.EOF
		}
		d.block, d.inline = *d.inline, nil
		return nil
	}
	if skipped, err := d.content.Hole(); err != nil || skipped > 0 {
		if err == nil {
			err = bad("has directory %d with a hole", d.inode.Number)
		}
		return err
	}
	if d.block == nil {
		d.block = make([]byte, d.fs.sb.blockSize)
	}
	_, err := io.ReadFull(d.content, d.block)
	if errors.Is(err, io.EOF) {
		d.block = nil
		return io.EOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return bad("has inode %d, a directory of %d bytes", d.inode.Number, d.inode.Size)
	}
	if err != nil {
		return err
	}
	if d.fs.dirLeft == 0 {
		return bad("has directories that share their blocks or have more than there are: %d is the last of them", d.inode.Number)
	}
	d.fs.dirLeft--
	return nil
}

// entry reads the record at the place that has been reached.
func (d *Dir) entry() (Entry, error) {
	const fixed = 8
	left := d.block[d.at:]
	if len(left) < fixed {
		if d.content.inline != nil && len(bytes.Trim(left, "\x00")) == 0 {
			d.at = len(d.block)
			return Entry{}, nil
		}
		return Entry{}, d.malformed()
	}
	length := recordLength(binary.LittleEndian.Uint16(left[4:]), d.fs.sb.blockSize)
	nameLength := int(left[6])
	if d.fs.sb.incompat&incompatFiletype == 0 {
		nameLength = int(binary.LittleEndian.Uint16(left[6:]))
	}
	number := binary.LittleEndian.Uint32(left)
	if length < fixed || length%4 != 0 || length > len(left) || number != 0 && fixed+nameLength > length || nameLength > 255 && number != 0 {
		return Entry{}, d.malformed()
	}
	d.at += length
	if number == 0 {
		return Entry{}, nil
	}
	return Entry{Inode: number, Name: string(left[fixed : fixed+nameLength])}, nil
}

func (d *Dir) malformed() error {
	return bad("has directory %d with a malformed record at byte %d of a block", d.inode.Number, d.at)
}

// recordLength decodes the length of a record, whose lower bits carry what blocks of
// 64 KiB need beyond 16 bits (Linux fs/ext4/ext4.h:ext4_rec_len_from_disk).
func recordLength(raw uint16, blockSize int) int {
	if blockSize < 1<<16 {
		return int(raw)
	}
	if raw == 0xffff || raw == 0 {
		return blockSize
	}
	return int(raw)&0xfffc | int(raw)&3<<16
}

// Lookup finds a path without following symbolic links; no such path: nil.
func (fs *FS) Lookup(path string) (*Inode, error) {
	i, err := fs.Inode(RootInode, "/")
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(path, "/") {
		if i.Type() != TypeDir {
			return nil, nil //nolint:nilnil // documented
		}
		if i, err = fs.child(i, name); i == nil || err != nil {
			return nil, err
		}
	}
	return i, nil
}

func (fs *FS) child(dir *Inode, name string) (*Inode, error) {
	left := fs.dirLeft
	defer func() { fs.dirLeft = left }() // looking is not walking
	d, err := fs.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	for {
		e, err := d.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil //nolint:nilnil // documented at Lookup
		}
		if err != nil {
			return nil, err
		}
		if e.Name == name {
			return fs.Inode(e.Inode, name)
		}
	}
}

// quote keeps a hostile name readable and short.
func quote(name string) string {
	const most = 100
	if len(name) > most {
		return fmt.Sprintf("%q…", name[:most])
	}
	return fmt.Sprintf("%q", name)
}
