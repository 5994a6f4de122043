package ext4

import (
	"encoding/binary"
	"time"
)

// RootInode is the number of the root directory.
const RootInode = 2

// firstUserInode of file systems without the field; lower ones are the file system's own.
const firstUserInode = 11

// Flags of inodes.
const (
	flagCompressed = 0x4
	flagEncrypted  = 0x800
	flagExtents    = 0x80000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
)

// Types of inodes, as in Mode.
const (
	TypeMask    = 0xf000
	TypeFifo    = 0x1000
	TypeChar    = 0x2000
	TypeDir     = 0x4000
	TypeBlock   = 0x6000
	TypeFile    = 0x8000
	TypeSymlink = 0xa000
	TypeSocket  = 0xc000
)

// Inode is one file, directory, link or device.
type Inode struct {
	Number   uint32
	Mode     uint16 // type and permission bits
	UID, GID uint32
	Links    uint16
	Size     int64
	ModTime  time.Time

	flags  uint32
	blocks uint64 // of 512 bytes, for telling fast symbolic links
	acl    uint64 // block of extended attributes
	data   [60]byte
	tail   []byte // behind the fixed fields: extended attributes
}

// Type is the type's bits of the mode.
func (i *Inode) Type() uint16 { return i.Mode & TypeMask }

// Device gives the numbers of a device node (Linux fs/ext4/inode.c:ext4_iget: the
// old encoding in the first field, the new one in the second).
func (i *Inode) Device() (major, minor uint32) {
	if v := binary.LittleEndian.Uint32(i.data[:]); v != 0 {
		return v >> 8 & 0xff, v & 0xff
	}
	v := binary.LittleEndian.Uint32(i.data[4:])
	return v & 0xfff00 >> 8, v&0xff | v>>12&0xfff00
}

// Inode reads an inode that a directory refers to; name is for messages.
func (fs *FS) Inode(n uint32, name string) (*Inode, error) {
	if n != RootInode && n < firstUserInode || n > fs.sb.inodes {
		return nil, bad("has %q at inode %d, which is reserved or beyond the last, %d", name, n, fs.sb.inodes)
	}
	i, err := fs.inode(n)
	if err != nil {
		return nil, err
	}
	if i.Links == 0 || i.Mode == 0 {
		return nil, bad("has %q at inode %d, which is free or deleted", name, n)
	}
	if i.flags&flagEncrypted != 0 {
		return nil, &Error{Found: "has encrypted files: " + quote(name), Want: "one without encryption"}
	}
	if i.flags&(flagCompressed|flagEAInode) != 0 {
		return nil, bad("has %q at inode %d with flags %#x", name, n, i.flags)
	}
	return i, nil
}

// inode reads any inode.
func (fs *FS) inode(n uint32) (*Inode, error) {
	if n == 0 || n > fs.sb.inodes {
		return nil, bad("refers to inode %d, and it has %d", n, fs.sb.inodes)
	}
	group, index := (n-1)/fs.sb.inodesPerGroup, (n-1)%fs.sb.inodesPerGroup
	table, err := fs.inodeTable(group)
	if err != nil {
		return nil, err
	}
	offset := uint64(index) * uint64(fs.sb.inodeSize)
	b, err := fs.block(table + offset>>fs.sb.blockBits)
	if err != nil {
		return nil, err
	}
	return parseInode(n, b[offset&(fs.sb.blockBytes()-1):][:fs.sb.inodeSize])
}

func parseInode(n uint32, b []byte) (*Inode, error) {
	le := binary.LittleEndian
	i := &Inode{
		Number: n, Mode: le.Uint16(b), Links: le.Uint16(b[0x1a:]), flags: le.Uint32(b[0x20:]),
		UID:    uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:    uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7a:]))<<16,
		blocks: uint64(le.Uint32(b[0x1c:])) | uint64(le.Uint16(b[0x74:]))<<32,
		acl:    uint64(le.Uint32(b[0x68:])) | uint64(le.Uint16(b[0x76:]))<<32,
		data:   [60]byte(b[0x28:]),
	}
	size := uint64(le.Uint32(b[4:])) | uint64(le.Uint32(b[0x6c:]))<<32
	if i.Size = int64(size); i.Size < 0 { //nolint:gosec // checked here
		return nil, bad("has inode %d of %d bytes", n, size)
	}
	seconds, nanos := int64(int32(le.Uint32(b[0x10:]))), int64(0) //nolint:gosec // the sign is the 32-bit field's
	if len(b) > 128 {
		extra := int(le.Uint16(b[0x80:]))
		if extra > len(b)-128 || extra%4 != 0 {
			return nil, bad("has inode %d with %d bytes of extra fields", n, extra)
		}
		if extra >= 12 {
			// Two bits carry the seconds beyond 2038, the others are nanoseconds.
			more := le.Uint32(b[0x88:])
			seconds, nanos = seconds+int64(more&3)<<32, min(int64(more>>2), 999_999_999)
		}
		if extra >= 4 {
			i.tail = append([]byte(nil), b[128+extra:]...)
		}
	}
	i.ModTime = time.Unix(seconds, nanos)
	return i, nil
}
