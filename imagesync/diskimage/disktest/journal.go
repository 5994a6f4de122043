package disktest

import (
	"encoding/binary"
	"hash/crc32"
)

// JournalInode is the inode of the journal.
const JournalInode = 8

// Log makes the blocks of a journal.
type Log struct {
	Features uint32 // Journal64Bit and others of the journal's own superblock
}

// Features of a journal.
const (
	Journal64Bit  = 0x2
	JournalCsumV2 = 0x8
	JournalCsumV3 = 0x10
)

// Kinds of a block of the log.
const (
	logDescriptor = 1
	logCommit     = 2
	logSuperV2    = 4
	logRevoke     = 5
)

// Flags of the tags of a descriptor.
const (
	TagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// Tag says where the content of a block of the log belongs.
type Tag struct {
	Block uint64
	Flags uint16 // TagEscaped
}

// Descriptor begins the blocks that have these tags.
func (l Log) Descriptor(sequence uint32, tags ...Tag) []byte {
	b, at := logBlock(logDescriptor, sequence), 12
	be := binary.BigEndian
	for n, t := range tags {
		flags := t.Flags | tagSameUUID
		if n == 0 {
			flags &^= tagSameUUID
		}
		if n == len(tags)-1 {
			flags |= tagLast
		}
		be.PutUint32(b[at:], uint32(t.Block))
		if l.Features&JournalCsumV3 != 0 {
			be.PutUint32(b[at+4:], uint32(flags))
		} else {
			be.PutUint16(b[at+6:], flags)
		}
		if l.Features&Journal64Bit != 0 {
			be.PutUint32(b[at+8:], uint32(t.Block>>32))
		}
		if at += l.tagSize(); n == 0 {
			at += 16 // the file system's UUID
		}
	}
	return l.sum(b, len(b)-4)
}

func (l Log) tagSize() int {
	size := 8
	if l.Features&Journal64Bit != 0 {
		size = 12
	}
	if l.Features&JournalCsumV2 != 0 {
		size += 2
	}
	if l.Features&JournalCsumV3 != 0 {
		size = 16
	}
	return size
}

// Revoke says that the blocks' content in this transaction and those before it is void.
func (l Log) Revoke(sequence uint32, blocks ...uint64) []byte {
	b, at := logBlock(logRevoke, sequence), 16
	for _, n := range blocks {
		if l.Features&Journal64Bit != 0 {
			binary.BigEndian.PutUint64(b[at:], n)
			at += 8
			continue
		}
		binary.BigEndian.PutUint32(b[at:], uint32(n))
		at += 4
	}
	binary.BigEndian.PutUint32(b[12:], uint32(at))
	return l.sum(b, len(b)-4)
}

// Commit ends a transaction.
func (l Log) Commit(sequence uint32) []byte { return l.sum(logBlock(logCommit, sequence), 16) }

func logBlock(kind, sequence uint32) []byte {
	b := make([]byte, Ext4Block)
	logHeader(b, kind, sequence)
	return b
}

func logHeader(b []byte, kind, sequence uint32) {
	be := binary.BigEndian
	be.PutUint32(b, 0xc03b3998)
	be.PutUint32(b[4:], kind)
	be.PutUint32(b[8:], sequence)
}

// Sum writes the checksum of a descriptor or revoke block that was changed.
func (l Log) Sum(b []byte) []byte { return l.sum(b, len(b)-4) }

// sum writes the checksum of a block, when the journal has such, with the UUID of zeros.
func (l Log) sum(b []byte, at int) []byte {
	if l.Features&(JournalCsumV2|JournalCsumV3) == 0 {
		return b
	}
	clear(b[at : at+4])
	table := crc32.MakeTable(crc32.Castagnoli)
	// The kernel's sums begin with ones and are not inverted at their end.
	sum := ^crc32.Update(crc32.Checksum(make([]byte, 16), table), table, b)
	binary.BigEndian.PutUint32(b[at:], sum)
	return b
}

// Journal gives the file system a journal that was not replayed: its superblock, from which
// the log begins with transaction 1 at the next block, and these blocks. It returns the superblock.
func (f *FS) Journal(l Log, log ...[]byte) []byte {
	first := f.next
	f.next += 1 + len(log)
	for n, b := range log {
		copy(f.Block(first+1+n), b)
	}
	be, le := binary.BigEndian, binary.LittleEndian
	super := f.Block(first)
	logHeader(super, logSuperV2, 0)
	be.PutUint32(super[12:], Ext4Block)
	be.PutUint32(super[16:], uint32(1+len(log)))
	be.PutUint32(super[20:], 1) // the first block of the log
	be.PutUint32(super[24:], 1) // the transaction that is expected
	be.PutUint32(super[28:], 1) // where it begins
	be.PutUint32(super[40:], l.Features)

	inode := f.InodeNumber(JournalInode)
	le.PutUint16(inode, 0x8000|0o600)
	le.PutUint32(inode[4:], uint32((1+len(log))*Ext4Block))
	le.PutUint16(inode[0x1a:], 1)
	le.PutUint32(inode[0x20:], 0x80000)
	le.PutUint16(inode[0x80:], 32)
	tree := inode[0x28:]
	le.PutUint16(tree, 0xf30a)
	le.PutUint16(tree[2:], 1)
	le.PutUint16(tree[4:], 4)
	le.PutUint16(tree[16:], uint16(1+len(log)))
	le.PutUint32(tree[20:], uint32(first))

	sb := f.Super()
	sb[0x5c] |= 0x4 // has a journal
	sb[0x60] |= 0x4 // which is to be replayed
	le.PutUint32(sb[0xe0:], JournalInode)
	return super
}

// Logged is a root whose journal has what a fuzzer may change: two transactions, of which the
// second takes back a block of the first, and a third that did not end.
func Logged(more ...File) *FS {
	f := Root(more...)
	name, init := uint64(f.Start["etc/hostname"]), uint64(f.Start["sbin/init"])
	var l Log
	f.Journal(l, l.Descriptor(1, Tag{Block: name}, Tag{Block: init}), []byte("logs\n"), []byte("#!/bin/no\n"), l.Commit(1),
		l.Revoke(2, init), l.Descriptor(2, Tag{Block: name, Flags: TagEscaped}), []byte("\x00\x00\x00\x00\n"), l.Commit(2),
		l.Descriptor(3, Tag{Block: init}), []byte("#!/bin/ja\n"))
	return f
}
