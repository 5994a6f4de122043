// Package ext4 reads ext2, ext3 and ext4 file systems of untrusted origin, without
// the kernel (Linux Documentation/filesystems/ext4).
//
// Nothing on the disk is believed: numbers of blocks and inodes are checked where
// they are used, trees become less deep at every step, and what is read into memory
// is one block or one list of attributes at a time. A journal that was not replayed
// is replayed in memory. Checksums of metadata are not compared: the image has a
// checksum of its own, and one that is hostile has them right.
package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/blockcache"
)

// Error tells that the file system is damaged, hostile, or more than is read here.
// Any other error is the reader's beneath or the context's.
type Error struct {
	Found string // completes "an ext4 file system that …"
	Want  string // what would work; empty: an undamaged one
}

// Error implements error.
func (e *Error) Error() string { return "ext4 file system " + e.Found }

func bad(format string, args ...any) error { return &Error{Found: fmt.Sprintf(format, args...)} }

// cacheMemory holds blocks of inode tables, directories and trees.
const cacheMemory = 8 << 20

// FS is an open file system. Not for concurrent use.
type FS struct {
	disk    io.ReaderAt // with the journal's blocks in place
	sb      superblock
	blocks  *blockcache.Cache
	dirLeft uint64 // blocks of directories that may still be read
}

// Open reads the superblock of a file system of at most size bytes and replays its
// journal in memory. An *Error tells what is wrong.
func Open(ctx context.Context, disk io.ReaderAt, size int64) (*FS, error) {
	if size < superOffset+superSize {
		return nil, bad("has only %d bytes", size)
	}
	fs := &FS{disk: disk}
	if err := fs.readSuper(size); err != nil {
		return nil, err
	}
	if fs.sb.incompat&incompatRecover == 0 {
		return fs, nil
	}
	replayed, err := fs.replay(ctx)
	if err != nil {
		return nil, err
	}
	if replayed == nil {
		return fs, nil
	}
	fs.disk = replayed
	return fs, fs.readSuper(size)
}

func (fs *FS) readSuper(size int64) error {
	raw := make([]byte, superSize)
	if err := readFull(fs.disk, raw, superOffset); err != nil {
		return err
	}
	sb, err := parseSuper(raw, size)
	if err != nil {
		return err
	}
	fs.sb = sb
	fs.blocks = blockcache.New(sb.blockSize, cacheMemory)
	fs.dirLeft = sb.blocks // a block belongs to one directory
	return nil
}

// Label is the volume's name.
func (fs *FS) Label() string { return fs.sb.label }

// Used is about how many bytes the content takes.
func (fs *FS) Used() int64 {
	used := fs.sb.blocks - fs.sb.free
	used -= min(used, fs.sb.overhead)
	return int64(used) << fs.sb.blockBits //nolint:gosec // not above the size of the disk
}

func readFull(disk io.ReaderAt, p []byte, offset int64) error {
	n, err := disk.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return bad("ends at byte %d", offset+int64(n))
	}
	return fmt.Errorf("read disk at byte %d: %w", offset, err)
}

// block reads a block of metadata; it is valid until the next call.
func (fs *FS) block(n uint64) ([]byte, error) {
	if err := fs.checkBlocks(n, 1); err != nil {
		return nil, err
	}
	return fs.blocks.Get(n, func(b []byte) error {
		return readFull(fs.disk, b, int64(n)<<fs.sb.blockBits) //nolint:gosec // below the size of the disk
	})
}

// blockOf reads a block that an inode refers to.
func (fs *FS) blockOf(i *Inode, n uint64) ([]byte, error) {
	if fs.checkBlocks(n, 1) != nil {
		return nil, bad("has inode %d with a block at %d, out of its range of %d blocks", i.Number, n, fs.sb.blocks)
	}
	return fs.block(n)
}

// checkBlocks refuses blocks that the file system does not have.
func (fs *FS) checkBlocks(first, count uint64) error {
	if first <= uint64(fs.sb.firstData) || first >= fs.sb.blocks || count > fs.sb.blocks-first {
		return bad("refers to %d blocks at %d, and it has %d", count, first, fs.sb.blocks)
	}
	return nil
}

// inodeTable finds the inode table of a group.
func (fs *FS) inodeTable(group uint32) (uint64, error) {
	perBlock := fs.sb.blockBytes() / uint64(fs.sb.descSize)
	b, err := fs.block(fs.sb.descriptorBlock(uint64(group) / perBlock))
	if err != nil {
		return 0, err
	}
	d := b[uint64(group)%perBlock*uint64(fs.sb.descSize):]
	table := uint64(binary.LittleEndian.Uint32(d[8:]))
	if fs.sb.hasDescriptorsOf64Bytes {
		table |= uint64(binary.LittleEndian.Uint32(d[0x28:])) << 32
	}
	return table, nil
}
