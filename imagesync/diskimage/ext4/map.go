package ext4

import "encoding/binary"

// run is a stretch of a file's blocks.
type run struct {
	first   uint64 // block of the file system; 0: a hole
	count   uint64 // blocks, at least one
	written bool   // false: zeros, whatever the blocks hold
}

// maxFileBlocks is beyond any file: extents have 32-bit block numbers, triple
// indirect blocks of 64 KiB reach further than that.
const maxFileBlocks = 1 << 48

// mapBlock finds the run that begins with block n of the inode.
func (fs *FS) mapBlock(i *Inode, n uint64) (run, error) {
	if i.flags&flagExtents != 0 {
		if n > 1<<32-1 {
			return run{count: maxFileBlocks}, nil
		}
		return fs.mapExtent(i, n)
	}
	return fs.mapIndirect(i, n)
}

const (
	extentMagic    = 0xf30a
	extentSize     = 12
	maxExtentDepth = 5
	maxExtentLen   = 32768 // longer: an extent that was not written, less this
)

// mapExtent goes down the tree of extents. Each node must be one less deep than the
// one above it, so that no tree can lead back to itself.
func (fs *FS) mapExtent(i *Inode, n uint64) (run, error) {
	node := i.data[:]
	depth := int(binary.LittleEndian.Uint16(node[6:]))
	if depth > maxExtentDepth {
		return run{}, bad("has inode %d with a tree of extents of depth %d", i.Number, depth)
	}
	end := uint64(1) << 32 // where the part of the file below this node ends
	for ; ; depth-- {
		entries, err := extentEntries(i, node, depth)
		if err != nil {
			return run{}, err
		}
		if depth == 0 {
			return fs.leaf(i, entries, n, end)
		}
		chosen := -1
		for at := 0; at < len(entries); at += extentSize {
			begin := uint64(binary.LittleEndian.Uint32(entries[at:]))
			if begin > n {
				end = min(end, begin)
				break
			}
			chosen = at
		}
		if chosen < 0 {
			return run{count: end - n}, nil
		}
		e := entries[chosen:]
		child := uint64(binary.LittleEndian.Uint32(e[4:])) | uint64(binary.LittleEndian.Uint16(e[8:]))<<32
		if node, err = fs.blockOf(i, child); err != nil {
			return run{}, err
		}
	}
}

// extentEntries checks the header of a node and gives its entries, which must ascend.
func extentEntries(i *Inode, node []byte, depth int) ([]byte, error) {
	le := binary.LittleEndian
	count, most, own := int(le.Uint16(node[2:])), int(le.Uint16(node[4:])), int(le.Uint16(node[6:]))
	if le.Uint16(node) != extentMagic || own != depth || count > most || most > (len(node)-extentSize)/extentSize || depth > 0 && count == 0 {
		return nil, bad("has inode %d with a malformed tree of extents", i.Number)
	}
	entries := node[extentSize : extentSize*(count+1)]
	for at := extentSize; at < len(entries); at += extentSize {
		if le.Uint32(entries[at:]) <= le.Uint32(entries[at-extentSize:]) {
			return nil, bad("has inode %d with extents out of order", i.Number)
		}
	}
	return entries, nil
}

// leaf finds the extent of block n, or the hole it is in, which ends before end.
func (fs *FS) leaf(i *Inode, entries []byte, n, end uint64) (run, error) {
	le := binary.LittleEndian
	for at := 0; at < len(entries); at += extentSize {
		e := entries[at:]
		begin, length := uint64(le.Uint32(e)), uint64(le.Uint16(e[4:]))
		if begin > n {
			end = min(end, begin)
			break
		}
		written := length <= maxExtentLen
		if !written {
			length -= maxExtentLen
		}
		if n >= begin+length {
			continue
		}
		first := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
		if err := fs.checkBlocks(first, length); err != nil {
			return run{}, bad("has inode %d with the extent %d+%d, out of its range of %d blocks", i.Number, first, length, fs.sb.blocks)
		}
		if at+extentSize < len(entries) && uint64(le.Uint32(e[extentSize:])) < begin+length {
			return run{}, bad("has inode %d with overlapping extents at its block %d", i.Number, begin+length)
		}
		return run{first: first + n - begin, count: begin + length - n, written: written}, nil
	}
	if end <= n {
		return run{}, bad("has inode %d with extents out of order", i.Number)
	}
	return run{count: end - n}, nil
}

// mapIndirect finds a block of an inode as ext2 and ext3 write them: twelve numbers,
// and one each of blocks of numbers in one, two and three levels.
func (fs *FS) mapIndirect(i *Inode, n uint64) (run, error) {
	const direct = 12
	if n < direct {
		return fs.consecutive(i, i.data[4*n:4*direct])
	}
	left := n - direct
	perBlock := fs.sb.blockBytes() / 4
	covers := perBlock // blocks of the file below the pointer at this level
	for level := range 3 {
		if left >= covers {
			left -= covers
			covers *= perBlock
			continue
		}
		pointer := binary.LittleEndian.Uint32(i.data[4*(direct+level):])
		for {
			if pointer == 0 {
				return run{count: covers - left}, nil
			}
			b, err := fs.blockOf(i, uint64(pointer))
			if err != nil {
				return run{}, err
			}
			if covers == perBlock {
				return fs.consecutive(i, b[4*left:])
			}
			covers /= perBlock
			pointer = binary.LittleEndian.Uint32(b[4*(left/covers):])
			left %= covers
		}
	}
	return run{count: maxFileBlocks}, nil
}

// consecutive joins the numbers at the beginning of the list that follow each other.
func (fs *FS) consecutive(i *Inode, numbers []byte) (run, error) {
	r := run{first: uint64(binary.LittleEndian.Uint32(numbers))}
	r.written = r.first != 0
	for ; len(numbers) >= 4; numbers = numbers[4:] {
		want := uint64(0)
		if r.written {
			want = r.first + r.count
		}
		if uint64(binary.LittleEndian.Uint32(numbers)) != want {
			break
		}
		r.count++
	}
	if r.written && fs.checkBlocks(r.first, r.count) != nil {
		return run{}, bad("has inode %d with blocks %d+%d, out of its range of %d blocks", i.Number, r.first, r.count, fs.sb.blocks)
	}
	return r, nil
}
