package disktest

import (
	"encoding/binary"
	"path"
	"strings"
)

// File is a file of a file system to be made. Directories must come before what is in them.
type File struct {
	Name   string // path without a leading slash
	Mode   uint16 // with the type; 0: a regular file 0644
	Data   string // content, or the target of a symbolic link
	Blocks int    // of content, when they are more than Data needs: the rest is a hole
	LinkTo string // another name of this file
}

// Dir is a mode for File.
const Dir = 0x4000 | 0o755

// Link is a mode for File.
const Link = 0xa000 | 0o777

// Geometry of what Ext4 makes: one group of blocks of 1 KiB.
const (
	Ext4Block  = 1024
	ext4Inodes = 64
	ext4Table  = 5 // block of the inode table
	InodeSize  = 256
	ext4First  = ext4Table + ext4Inodes*InodeSize/Ext4Block
	// Ext4Blocks is the number of blocks.
	Ext4Blocks = 512
	// FirstInode is the inode of the first File; each has its own, in their order, hard links none.
	FirstInode = 11
)

// FS is a file system image of which tests know the places.
type FS struct {
	Bytes []byte
	Inode map[string]int // number by name; the root: ""
	Start map[string]int // first block of the content by name
	next  int            // free block
}

// Super is the superblock.
func (f *FS) Super() []byte { return f.Bytes[1024:2048] }

// InodeOf is the inode of a file.
func (f *FS) InodeOf(name string) []byte { return f.InodeNumber(f.Inode[name]) }

// InodeNumber is an inode by its number.
func (f *FS) InodeNumber(n int) []byte {
	return f.Bytes[ext4Table*Ext4Block+(n-1)*InodeSize:][:InodeSize]
}

// Block is a block.
func (f *FS) Block(n int) []byte { return f.Bytes[n*Ext4Block : (n+1)*Ext4Block] }

// Allocate takes a free block.
func (f *FS) Allocate() int {
	f.next++
	return f.next - 1
}

// Root is a small root file system, to which more files may be added.
func Root(more ...File) *FS {
	return Ext4("", append([]File{
		{Name: "etc", Mode: Dir},
		{Name: "sbin", Mode: Dir},
		{Name: "etc/hostname", Data: "disk\n"},
		{Name: "sbin/init", Mode: 0x8000 | 0o755, Data: "#!/bin/sh\n"},
		{Name: "sbin/sh", Mode: Link, Data: "init"},
	}, more...)...)
}

// Ext4 makes a file system with extents, without a journal.
func Ext4(label string, files ...File) *FS {
	le := binary.LittleEndian
	f := &FS{Bytes: make([]byte, Ext4Blocks*Ext4Block), Inode: map[string]int{"": 2}, Start: map[string]int{}, next: ext4First}
	sb := f.Super()
	le.PutUint32(sb, ext4Inodes)
	le.PutUint32(sb[4:], Ext4Blocks)
	le.PutUint32(sb[0xc:], Ext4Blocks/2)
	le.PutUint32(sb[0x14:], 1)
	le.PutUint32(sb[0x20:], 8*Ext4Block)
	le.PutUint32(sb[0x28:], ext4Inodes)
	le.PutUint16(sb[0x38:], 0xef53)
	le.PutUint32(sb[0x4c:], 1)
	le.PutUint16(sb[0x58:], InodeSize)
	le.PutUint32(sb[0x60:], 0x2|0x40) // file types, extents
	copy(sb[0x78:], label)
	le.PutUint32(f.Block(2)[8:], ext4Table)

	lists := map[string][]byte{"": entry(2, ".")}
	names := []string{""}
	number := FirstInode
	for _, file := range files {
		n := number
		if file.LinkTo != "" {
			n = f.Inode[file.LinkTo]
			le.PutUint16(f.InodeNumber(n)[0x1a:], le.Uint16(f.InodeNumber(n)[0x1a:])+1)
		} else {
			number++
		}
		f.Inode[file.Name] = n
		parent := path.Dir(file.Name)
		if parent == "." {
			parent = ""
		}
		lists[parent] = append(lists[parent], entry(n, path.Base(file.Name))...)
		switch {
		case file.LinkTo != "":
		case file.Mode&0xf000 == 0x4000:
			lists[file.Name] = append(entry(n, "."), entry(f.Inode[parent], "..")...)
			names = append(names, file.Name)
			f.store(file.Name, file.Mode, nil, 0)
		case file.Mode&0xf000 == 0xa000 && len(file.Data) < 60:
			f.store(file.Name, file.Mode, nil, 0)
			inode := f.InodeOf(file.Name)
			le.PutUint32(inode[4:], uint32(len(file.Data)))
			le.PutUint32(inode[0x20:], 0)
			clear(inode[0x28:][:60])
			copy(inode[0x28:], file.Data)
		default:
			if file.Mode == 0 {
				file.Mode = 0x8000 | 0o644
			}
			f.store(file.Name, file.Mode, []byte(file.Data), file.Blocks)
		}
	}
	for _, name := range names {
		f.store(name, Dir, directory(lists[name]), 0)
	}
	return f
}

// store writes an inode and its content, which is in one extent.
func (f *FS) store(name string, mode uint16, data []byte, blocks int) {
	le := binary.LittleEndian
	inode := f.InodeOf(name)
	used := (len(data) + Ext4Block - 1) / Ext4Block
	size := max(len(data), blocks*Ext4Block)
	le.PutUint16(inode, mode)
	le.PutUint32(inode[4:], uint32(size))
	le.PutUint32(inode[0x10:], 1_600_000_000)
	le.PutUint16(inode[0x1a:], 1)
	le.PutUint32(inode[0x1c:], uint32(used*2))
	le.PutUint32(inode[0x20:], 0x80000)
	le.PutUint16(inode[0x80:], 32)
	tree := inode[0x28:]
	le.PutUint16(tree, 0xf30a)
	le.PutUint16(tree[4:], 4)
	if used == 0 {
		return
	}
	start := f.next
	f.next += used
	copy(f.Bytes[start*Ext4Block:], data)
	le.PutUint16(tree[2:], 1)
	le.PutUint16(tree[16:], uint16(used))
	le.PutUint32(tree[20:], uint32(start))
	f.Start[name] = start
}

// entry is a record of a directory.
func entry(inode int, name string) []byte {
	e := make([]byte, (8+len(name)+3)&^3)
	binary.LittleEndian.PutUint32(e, uint32(inode))
	binary.LittleEndian.PutUint16(e[4:], uint16(len(e)))
	e[6] = byte(len(name))
	copy(e[8:], name)
	return e
}

// directory puts records into blocks, which the last record of each fills.
func directory(list []byte) []byte {
	var out, block []byte
	last := 0
	end := func() {
		binary.LittleEndian.PutUint16(block[last+4:], uint16(Ext4Block-last))
		out = append(out, block...)
		out = append(out, make([]byte, Ext4Block-len(block))...)
		block, last = nil, 0
	}
	for len(list) > 0 {
		length := int(binary.LittleEndian.Uint16(list[4:]))
		if len(block)+length > Ext4Block {
			end()
		}
		last = len(block)
		block = append(block, list[:length]...)
		list = list[length:]
	}
	end()
	return out
}

// LongName is a name of the greatest length.
var LongName = strings.Repeat("n", 255)
