package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// The journal (Linux include/linux/jbd2.h, fs/jbd2/recovery.c). All of it is big-endian.
const (
	journalMagic      = 0xc03b3998
	journalDescriptor = 1
	journalCommit     = 2
	journalSuperV1    = 3
	journalSuperV2    = 4
	journalRevoke     = 5

	journal64Bit       = 0x2
	journalAsyncCommit = 0x4
	journalCsumV2      = 0x8
	journalCsumV3      = 0x10
	journalFastCommit  = 0x20
	journalKnown       = 0x1 | journal64Bit | journalAsyncCommit | journalCsumV2 | journalCsumV3 | journalFastCommit

	tagEscaped  = 1 // the block began with the magic number
	tagSameUUID = 2
	tagLast     = 8

	// maxJournal bounds the list of blocks: mkfs.ext4 makes at most half as many by itself.
	maxJournal = 512 << 10
	// maxRevoked bounds the records of revoked blocks, of which those of one transaction are kept.
	maxRevoked = 1 << 20
	// maxPieces bounds the time that it takes to find the blocks: in a tree of extents of one block each, as
	// deep and wide as may be, so many take a second, and those of the largest journal half a minute. One of
	// mkfs or tune2fs has a few, and one of 1 KiB blocks without extents at least one for 256 blocks.
	maxPieces = 16 << 10
)

// wantClean ends the refusals of a journal: what would work.
const wantClean = "a file system that was unmounted, or checked with e2fsck -f before the upload"

// replayed is a disk on which the newest blocks are those of the journal.
type replayed struct {
	disk   io.ReaderAt
	bits   uint32
	blocks map[uint64]logged
}

// logged is where a newer content of a block is on the disk: its offset, a multiple of the size of a
// block, and in the lowest bit whether it is escaped. There may be as many as a journal has blocks.
type logged int64

func (l logged) offset() int64 { return int64(l &^ 1) }
func (l logged) escaped() bool { return l&1 != 0 }

// ReadAt implements io.ReaderAt.
func (r *replayed) ReadAt(p []byte, offset int64) (int, error) {
	size := int64(1) << r.bits
	for done := 0; done < len(p); {
		at := offset + int64(done)
		within := at & (size - 1)
		part := p[done:min(len(p), done+int(size-within))]
		newer, ok := r.blocks[uint64(at>>r.bits)] //nolint:gosec // positive
		if ok {
			at = newer.offset() + within
		}
		n, err := r.disk.ReadAt(part, at)
		if n < len(part) {
			return done + n, err
		}
		if newer.escaped() && within < 4 {
			var mark [4]byte
			binary.BigEndian.PutUint32(mark[:], journalMagic)
			copy(part, mark[within:])
		}
		done += len(part)
	}
	return len(p), nil
}

// journal reads the log.
type journal struct {
	fs       *FS
	inode    *Inode
	features uint32
	first    uint32 // block of the log
	end      uint32 // beyond its last
	start    uint32 // where the oldest transaction begins
	sequence uint32
	seed     uint32 // of checksums
	fast     uint32 // blocks of fast commits behind end
	found    map[uint64]logged
	revoked  int    // records that were read
	pieces   int    // runs that were looked for
	piece    run    // the last of them
	from     uint64 // its first block in the journal
}

// replay reads the transactions that were committed and not yet written to their
// place; nil: there are none. A disk that was copied while it was in use has some.
func (fs *FS) replay(ctx context.Context) (*replayed, error) {
	if fs.sb.compat&compatHasJournal == 0 || fs.sb.journalInode == 0 {
		return nil, &Error{Found: "was not unmounted and has its journal elsewhere", Want: wantClean}
	}
	inode, err := fs.inode(fs.sb.journalInode)
	if err != nil {
		return nil, err
	}
	if inode.Type() != TypeFile || inode.flags&flagInlineData != 0 {
		return nil, bad("has a journal that is no file")
	}
	j := &journal{fs: fs, inode: inode, found: map[uint64]logged{}}
	if err := j.super(); err != nil {
		return nil, err
	}
	if j.start != 0 {
		if err := j.scan(ctx); err != nil {
			return nil, err
		}
	}
	if err := j.checkFastCommits(); err != nil {
		return nil, err
	}
	if len(j.found) == 0 {
		return nil, nil //nolint:nilnil // documented
	}
	return &replayed{disk: fs.disk, bits: fs.sb.blockBits, blocks: j.found}, nil
}

// place finds a block of the journal on the disk.
func (j *journal) place(n uint32) (uint64, error) {
	within := uint64(n) - j.from
	if uint64(n) < j.from || within >= j.piece.count {
		if j.pieces++; j.pieces > maxPieces {
			return 0, &Error{Found: fmt.Sprintf("was not unmounted and has its journal in more than %d pieces", maxPieces), Want: wantClean}
		}
		r, err := j.fs.mapBlock(j.inode, uint64(n))
		if err != nil {
			return 0, err
		}
		j.from, j.piece, within = uint64(n), r, 0
	}
	if !j.piece.written {
		return 0, bad("has a journal with a hole at its block %d", n)
	}
	return j.piece.first + within, nil
}

// read gives a block of the journal; it is valid until the next call.
func (j *journal) read(n uint32) ([]byte, error) {
	at, err := j.place(n)
	if err != nil {
		return nil, err
	}
	return j.fs.block(at)
}

func (j *journal) super() error {
	b, err := j.read(0)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	kind := be.Uint32(b[4:])
	if be.Uint32(b) != journalMagic || kind != journalSuperV1 && kind != journalSuperV2 {
		return &Error{Found: "was not unmounted and has a damaged journal", Want: wantClean}
	}
	blocks := be.Uint32(b[16:])
	j.end = blocks
	j.first, j.sequence, j.start = be.Uint32(b[20:]), be.Uint32(b[24:]), be.Uint32(b[28:])
	if kind == journalSuperV2 {
		j.features = be.Uint32(b[40:])
		j.seed = crc32c(^uint32(0), b[48:64])
	}
	if unknown := j.features &^ journalKnown; unknown != 0 {
		return &Error{Found: fmt.Sprintf("was not unmounted and has a journal with features of a later version (%#x)", unknown), Want: wantClean}
	}
	if j.features&journalFastCommit != 0 {
		const usual = 256 // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
		if j.fast = be.Uint32(b[84:]); j.fast == 0 {
			j.fast = usual
		}
		j.end -= min(j.fast, j.end)
	}
	if be.Uint32(b[12:]) != uint32(j.fs.sb.blockSize) || blocks > maxJournal || int64(blocks)<<j.fs.sb.blockBits > j.inode.Size || //nolint:gosec // at most 64 KiB
		j.first == 0 || j.first >= j.end || j.start != 0 && (j.start < j.first || j.start >= j.end) {
		return &Error{Found: "was not unmounted and has a malformed journal", Want: wantClean}
	}
	return nil
}

// next is the block behind n; the log is a ring.
func (j *journal) next(n uint32) uint32 {
	if n++; n < j.end {
		return n
	}
	return j.first
}

// scan follows the log until it ends: at a block that belongs to no further
// transaction, or one whose checksum is wrong. Only what a commit block follows counts.
func (j *journal) scan(ctx context.Context) error {
	var open []loggedTag // of the transaction that has not ended yet
	var revokes []uint64
	at := j.start
	for left := j.end - j.first; left > 0; left-- {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		b, err := j.read(at)
		if err != nil {
			return err
		}
		be := binary.BigEndian
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != j.sequence || !j.intact(b) {
			return nil
		}
		at = j.next(at)
		switch be.Uint32(b[4:]) {
		case journalDescriptor:
			tags, ok := j.tags(b)
			if !ok || uint32(len(tags)) > left { //nolint:gosec // a block's
				return &Error{Found: "was not unmounted and has a malformed journal", Want: wantClean}
			}
			for _, t := range tags {
				offset, err := j.offset(at)
				if err != nil {
					return err
				}
				t.logged |= offset
				open = append(open, t)
				at = j.next(at)
				left--
			}
		case journalRevoke:
			blocks, ok := j.revokes(b)
			if !ok {
				return &Error{Found: "was not unmounted and has a malformed journal", Want: wantClean}
			}
			revokes = append(revokes, blocks...)
			if j.revoked += len(blocks); j.revoked > maxRevoked {
				return &Error{Found: fmt.Sprintf("was not unmounted and has more than %d revoked blocks in its journal", maxRevoked), Want: wantClean}
			}
		case journalCommit:
			for _, t := range open {
				j.found[t.block] = t.logged
			}
			// It voids what this transaction and those before it have of the block; later ones are to come.
			for _, block := range revokes {
				delete(j.found, block)
			}
			open, revokes = open[:0], revokes[:0]
			j.sequence++
		default:
			return nil
		}
		if left == 0 {
			break
		}
	}
	return nil
}

func (j *journal) offset(n uint32) (logged, error) {
	block, err := j.place(n)
	return logged(block) << j.fs.sb.blockBits, err //nolint:gosec // checked by mapBlock
}

func (j *journal) hasChecksums() bool { return j.features&(journalCsumV2|journalCsumV3) != 0 }

// intact compares the checksum of a block of the log.
func (j *journal) intact(b []byte) bool {
	if !j.hasChecksums() {
		return true
	}
	at := len(b) - 4
	if binary.BigEndian.Uint32(b[4:]) == journalCommit {
		at = 16
	}
	sum := crc32c(j.seed, b[:at])
	sum = crc32c(sum, make([]byte, 4))
	sum = crc32c(sum, b[at+4:])
	return sum == binary.BigEndian.Uint32(b[at:])
}

// body is a descriptor or revoke block without the checksum at its end.
func (j *journal) body(b []byte) []byte {
	if j.hasChecksums() {
		return b[:len(b)-4]
	}
	return b
}

// crc32c goes on with a sum as Linux does: without the inversions.
func crc32c(sum uint32, b []byte) uint32 {
	return ^crc32.Update(^sum, castagnoli, b)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type loggedTag struct {
	block uint64
	logged
}

// tags reads a descriptor block: which blocks follow it.
func (j *journal) tags(b []byte) ([]loggedTag, bool) {
	be := binary.BigEndian
	b = j.body(b)
	size := 8
	if j.features&journal64Bit != 0 {
		size = 12
	}
	if j.features&journalCsumV2 != 0 {
		size += 2 // Linux fs/jbd2/journal.c:journal_tag_bytes
	}
	if j.features&journalCsumV3 != 0 {
		size = 16
	}
	var tags []loggedTag
	for at := 12; ; {
		if at+size > len(b) {
			return nil, false
		}
		t := b[at:]
		flags := uint32(be.Uint16(t[6:]))
		if j.features&journalCsumV3 != 0 {
			flags = be.Uint32(t[4:])
		}
		block := uint64(be.Uint32(t))
		if j.features&journal64Bit != 0 {
			block |= uint64(be.Uint32(t[8:])) << 32
		}
		if block >= j.fs.sb.blocks {
			return nil, false
		}
		tags = append(tags, loggedTag{block, logged(flags & tagEscaped)})
		at += size
		if flags&tagSameUUID == 0 {
			at += 16
		}
		if flags&tagLast != 0 {
			return tags, true
		}
	}
}

// revokes reads a revoke block: whose earlier content must not be written.
func (j *journal) revokes(b []byte) ([]uint64, bool) {
	be := binary.BigEndian
	used, size := int(be.Uint32(b[12:])), 4
	if j.features&journal64Bit != 0 {
		size = 8
	}
	if used < 16 || used > len(j.body(b)) {
		return nil, false
	}
	var blocks []uint64
	for at := 16; at+size <= used; at += size {
		if size == 8 {
			blocks = append(blocks, be.Uint64(b[at:]))
		} else {
			blocks = append(blocks, uint64(be.Uint32(b[at:])))
		}
	}
	return blocks, true
}

// checkFastCommits refuses fast commits: records of changes, not blocks.
func (j *journal) checkFastCommits() error {
	const head, length = 9, 8 // EXT4_FC_TAG_HEAD: tag, length, features, transaction
	if j.fast == 0 {
		return nil
	}
	b, err := j.read(j.end)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint16(b) == head && le.Uint16(b[2:]) == length && le.Uint32(b[8:]) == j.sequence {
		return &Error{Found: "was not unmounted and has fast commits in its journal", Want: wantClean}
	}
	return nil
}
