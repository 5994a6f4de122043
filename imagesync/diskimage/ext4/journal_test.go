package ext4

import (
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/disktest"
)

var be = binary.BigEndian

// replayTime is far beyond what the largest journal takes.
const replayTime = 3 * time.Minute

// guarded is a disk of which nothing may be read that is not there. Behind its blocks are those
// that more gives, up to size.
type guarded struct {
	t    testing.TB
	disk []byte
	size int64
	more func(block int64) []byte
	read func() // at every access
}

func (g *guarded) ReadAt(p []byte, offset int64) (int, error) {
	size := max(g.size, int64(len(g.disk)))
	if offset < 0 || offset+int64(len(p)) > size {
		g.t.Errorf("read of %d bytes at %d, the disk has %d", len(p), offset, size)
		return 0, io.EOF
	}
	if g.read != nil {
		g.read()
	}
	if offset+int64(len(p)) <= int64(len(g.disk)) {
		return copy(p, g.disk[offset:]), nil
	}
	clear(p)
	copy(p, g.more(offset/disktest.Ext4Block))
	return len(p), nil
}

// replayedTree reads all of a file system in a limited time.
func replayedTree(t testing.TB, f *disktest.FS) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), replayTime)
	defer cancel()
	fs, err := Open(ctx, &guarded{t: t, disk: f.Bytes}, int64(len(f.Bytes)))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	return out, readAll(fs, RootInode, "", 0, out)
}

func hostname(f *disktest.FS) disktest.Tag {
	return disktest.Tag{Block: uint64(f.Start["etc/hostname"])}
}

// TestJournal: what is read is what the transactions that have ended say.
func TestJournal(t *testing.T) {
	t.Parallel()
	before, logs, more := "disk\n", []byte("logs\n"), []byte("more\n")
	type blocks = [][]byte
	for name, c := range map[string]struct {
		log   func(l disktest.Log, host disktest.Tag) blocks
		super func(super []byte)
		want  string
	}{
		"committed": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(1)}
		}, nil, "logs\n"},
		"not committed": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs}
		}, nil, before},
		"another's commit": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(2)}
		}, nil, before},
		"the newest": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(1), l.Descriptor(2, host), more, l.Commit(2)}
		}, nil, "more\n"},
		"one of two": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, disktest.Tag{Block: 500}, host), more, logs, l.Commit(1)}
		}, nil, "logs\n"},
		"revoked": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(1), l.Revoke(2, 500, host.Block), l.Commit(2)}
		}, nil, before},
		"revoked in its own transaction": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Revoke(1, host.Block), l.Descriptor(1, host), logs, l.Commit(1)}
		}, nil, before},
		"written after a revoke": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(1), l.Revoke(2, host.Block), l.Commit(2), l.Descriptor(3, host), more, l.Commit(3)}
		}, nil, "more\n"},
		"revoke not committed": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(1), l.Revoke(2, host.Block)}
		}, nil, "logs\n"},
		"escaped": {func(l disktest.Log, host disktest.Tag) blocks {
			host.Flags = disktest.TagEscaped
			return blocks{l.Descriptor(1, host), []byte("\x00\x00\x00\x00\n"), l.Commit(1)}
		}, nil, "\xc0\x3b\x39\x98\n"},
		"around the end": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{logs, l.Commit(1), l.Descriptor(1, host)}
		}, func(super []byte) { be.PutUint32(super[28:], 3) }, "logs\n"},
		"numbers go round": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1<<32-1, host), logs, l.Commit(1<<32 - 1), l.Descriptor(0, host), more, l.Commit(0)}
		}, func(super []byte) { be.PutUint32(super[24:], 1<<32-1) }, "more\n"},
		"written to its place": {func(l disktest.Log, host disktest.Tag) blocks {
			return blocks{l.Descriptor(1, host), logs, l.Commit(1)}
		}, func(super []byte) { be.PutUint32(super[28:], 0) }, before},
	} {
		for _, features := range []uint32{0, disktest.Journal64Bit, disktest.JournalCsumV2, disktest.JournalCsumV3, disktest.JournalCsumV3 | disktest.Journal64Bit} {
			f, l := disktest.Root(), disktest.Log{Features: features}
			super := f.Journal(l, c.log(l, hostname(f))...)
			if c.super != nil {
				c.super(super)
			}
			got, err := replayedTree(t, f)
			require.NoError(t, err, "%s, features %#x", name, features)
			require.Equal(t, c.want, got["/etc/hostname"], "%s, features %#x", name, features)
		}
	}
}

// TestJournalChecksum: a block with a wrong one ends the log.
func TestJournalChecksum(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "disk\n", 2: "disk\n", 3: "logs\n", 5: "logs\n", 6: "more\n"} {
		f, l := disktest.Root(), disktest.Log{Features: disktest.JournalCsumV3}
		host := hostname(f)
		log := [][]byte{l.Descriptor(1, host), []byte("logs\n"), l.Commit(1), l.Descriptor(2, host), []byte("more\n"), l.Commit(2), l.Revoke(3, host.Block), l.Commit(3)}
		log[n][700] ^= 1
		f.Journal(l, log...)
		got, err := replayedTree(t, f)
		require.NoError(t, err)
		require.Equal(t, want, got["/etc/hostname"], "block %d damaged", n)
	}
}

// mapAgain gives the journal 512 Ki blocks: its superblock, and the blocks behind it over and over.
func mapAgain(f *disktest.FS, super []byte) {
	const blocks = maxJournal
	inode := f.InodeNumber(disktest.JournalInode)
	le.PutUint32(inode[4:], blocks*disktest.Ext4Block)
	be.PutUint32(super[16:], blocks)
	tree := inode[0x28:]
	first, count := le.Uint32(tree[20:]), uint32(le.Uint16(tree[16:]))-1
	const perLeaf = (disktest.Ext4Block - 12) / 12
	var leaves []byte // numbers of the first block and of the leaf
	var leaf []byte
	add := func(begin, length, start uint32) {
		n := uint16(0)
		if leaf != nil {
			n = le.Uint16(leaf[2:])
		}
		if n == 0 || n == perLeaf {
			at := f.Allocate()
			leaf, n = f.Block(at), 0
			le.PutUint16(leaf, extentMagic)
			le.PutUint16(leaf[4:], perLeaf)
			leaves = le.AppendUint64(le.AppendUint32(leaves, begin), uint64(at))
		}
		e := leaf[12+12*int(n):]
		le.PutUint32(e, begin)
		le.PutUint16(e[4:], uint16(length))
		le.PutUint32(e[8:], start)
		le.PutUint16(leaf[2:], n+1)
	}
	add(0, 1, first)
	for at := uint32(1); at < blocks; at += count {
		add(at, count, first+1)
	}
	index := f.Allocate()
	node := f.Block(index)
	le.PutUint16(node, extentMagic)
	le.PutUint16(node[2:], uint16(len(leaves)/12))
	le.PutUint16(node[4:], perLeaf)
	le.PutUint16(node[6:], 1)
	copy(node[12:], leaves)
	le.PutUint16(tree[6:], 2)
	le.PutUint32(tree[16:], uint32(index))
	le.PutUint32(tree[20:], 0)
}

// same is a log of n equal blocks.
func same(n int, b []byte) [][]byte {
	log := make([][]byte, n)
	for i := range log {
		log[i] = b
	}
	return log
}

// TestHostileJournal: a journal that is not as it must be ends in an error, or is not replayed.
func TestHostileJournal(t *testing.T) {
	t.Parallel()
	plain, sums := disktest.Log{}, disktest.Log{Features: disktest.JournalCsumV3}
	one := func(f *disktest.FS) []byte {
		return f.Journal(plain, plain.Descriptor(1, hostname(f)), []byte("logs\n"), plain.Commit(1))
	}
	super := func(at int, value uint32) func(f *disktest.FS) {
		return func(f *disktest.FS) { be.PutUint32(one(f)[at:], value) }
	}
	inode := func(change func(inode []byte)) func(f *disktest.FS) {
		return func(f *disktest.FS) {
			one(f)
			change(f.InodeNumber(disktest.JournalInode))
		}
	}
	revoke := func(l disktest.Log, used uint32) func(f *disktest.FS) {
		return func(f *disktest.FS) {
			b := l.Revoke(1, hostname(f).Block)
			be.PutUint32(b[12:], used)
			f.Journal(l, l.Sum(b), l.Commit(1))
		}
	}
	for name, c := range map[string]struct {
		damage func(f *disktest.FS)
		found  string // empty: nothing is replayed
	}{
		"no superblock":        {super(0, 0), "damaged journal"},
		"superblock's kind":    {super(4, 1), "damaged journal"},
		"block size":           {super(12, 4096), "malformed journal"},
		"no blocks":            {super(16, 0), "malformed journal"},
		"blocks beyond file":   {super(16, 5), "malformed journal"},
		"most blocks":          {super(16, 1<<32-1), "malformed journal"},
		"first 0":              {super(20, 0), "malformed journal"},
		"first at the end":     {super(20, 4), "malformed journal"},
		"first beyond the end": {super(20, 1<<32-1), "malformed journal"},
		"start at the end":     {super(28, 4), "malformed journal"},
		"start beyond the end": {super(28, 1<<32-1), "malformed journal"},
		"start before first": {func(f *disktest.FS) {
			b := one(f)
			be.PutUint32(b[20:], 2)
		}, "malformed journal"},
		"unknown feature": {super(40, 0x80000000), "features of a later version (0x80000000)"},
		"more blocks than allowed": {func(f *disktest.FS) {
			be.PutUint32(one(f)[16:], maxJournal+1)
			le.PutUint32(f.InodeNumber(disktest.JournalInode)[4:], 1<<32-1)
		}, "malformed journal"},
		"all blocks for fast commits": {func(f *disktest.FS) {
			b := one(f)
			be.PutUint32(b[40:], journalFastCommit)
			be.PutUint32(b[84:], 1<<32-1)
		}, "malformed journal"},
		"fast commits": {func(f *disktest.FS) {
			fast := make([]byte, disktest.Ext4Block)
			copy(fast, "\x09\x00\x08\x00\x00\x00\x00\x00\x02\x00\x00\x00")
			b := f.Journal(plain, plain.Descriptor(1, hostname(f)), []byte("logs\n"), plain.Commit(1), fast)
			be.PutUint32(b[40:], journalFastCommit)
			be.PutUint32(b[84:], 1)
		}, "fast commits"},

		"directory":                           {inode(func(i []byte) { le.PutUint16(i, 0x4000|0o700) }), "no file"},
		"in its inode":                        {inode(func(i []byte) { le.PutUint32(i[0x20:], flagInlineData) }), "no file"},
		"file too short":                      {inode(func(i []byte) { le.PutUint32(i[4:], 3*disktest.Ext4Block) }), "malformed journal"},
		"extent outside":                      {inode(func(i []byte) { le.PutUint32(i[0x28+20:], disktest.Ext4Blocks-1) }), "out of its range"},
		"no extents":                          {inode(func(i []byte) { le.PutUint16(i[0x28+2:], 0) }), "a hole at its block 0"},
		"hole":                                {inode(func(i []byte) { le.PutUint16(i[0x28+16:], 2) }), "a hole at its block 2"},
		"extent of zeros":                     {inode(func(i []byte) { le.PutUint16(i[0x28+16:], maxExtentLen+4) }), "a hole at its block 0"},
		"on the file system's own superblock": {inode(func(i []byte) { le.PutUint32(i[0x28+20:], 2) }), "damaged journal"},

		"tag beyond the disk": {func(f *disktest.FS) {
			f.Journal(plain, plain.Descriptor(1, disktest.Tag{Block: disktest.Ext4Blocks}), nil, plain.Commit(1))
		}, "malformed journal"},
		"tag far beyond the disk": {func(f *disktest.FS) {
			l := disktest.Log{Features: disktest.Journal64Bit}
			f.Journal(l, l.Descriptor(1, disktest.Tag{Block: 1<<63 + 30}), nil, l.Commit(1))
		}, "malformed journal"},
		"no last tag": {func(f *disktest.FS) {
			b := plain.Descriptor(1, hostname(f))
			b[12+7] &^= tagLast
			f.Journal(plain, b, []byte("logs\n"), plain.Commit(1))
		}, "malformed journal"},
		"more tags than blocks": {func(f *disktest.FS) {
			host := hostname(f)
			f.Journal(plain, plain.Descriptor(1, host, host, host, host, host), nil, plain.Commit(1))
		}, "malformed journal"},
		"tags of the whole log": {func(f *disktest.FS) {
			host := hostname(f)
			f.Journal(plain, plain.Descriptor(1, host, host, host), nil, plain.Commit(1))
		}, ""},
		"tag of the superblock": {func(f *disktest.FS) {
			f.Journal(plain, plain.Descriptor(1, disktest.Tag{Block: 1}), nil, plain.Commit(1))
		}, "no superblock"},
		"a superblock that claims more": {func(f *disktest.FS) {
			b := append([]byte(nil), f.Super()...)
			le.PutUint32(b[4:], 1<<31)
			f.Journal(plain, plain.Descriptor(1, disktest.Tag{Block: 1}), b, plain.Commit(1))
		}, "more than its partition"},
		"a superblock with other blocks": {func(f *disktest.FS) {
			b := append([]byte(nil), f.Super()...)
			le.PutUint32(b[0x18:], 2)
			le.PutUint32(b[4:], disktest.Ext4Blocks/4)
			f.Journal(plain, plain.Descriptor(1, disktest.Tag{Block: 1}), b, plain.Commit(1))
		}, "first data block"},
		"tags of the journal itself": {func(f *disktest.FS) {
			at := uint64(f.Allocate()) + 1 // the superblock
			f.Journal(plain, plain.Descriptor(1, disktest.Tag{Block: at}, disktest.Tag{Block: at + 1}, disktest.Tag{Block: at + 2}),
				plain.Descriptor(2, hostname(f)), plain.Revoke(1), plain.Commit(2), plain.Commit(1))
		}, ""},

		"revokes of 0 bytes":                   {revoke(plain, 0), "malformed journal"},
		"revokes in the header":                {revoke(plain, 15), "malformed journal"},
		"revokes larger than a block":          {revoke(plain, disktest.Ext4Block+1), "malformed journal"},
		"most revokes":                         {revoke(plain, 1<<32-1), "malformed journal"},
		"revokes that have the checksum":       {revoke(sums, disktest.Ext4Block), "malformed journal"},
		"revokes of half a number":             {revoke(plain, 18), ""},
		"revokes of blocks that are not there": {func(f *disktest.FS) { f.Journal(plain, plain.Revoke(1, 1<<32-1), plain.Commit(1)) }, ""},

		"ring of descriptors":   {func(f *disktest.FS) { f.Journal(plain, same(400, plain.Descriptor(1, hostname(f)))...) }, ""},
		"ring of empty revokes": {func(f *disktest.FS) { f.Journal(plain, same(400, plain.Revoke(1))...) }, ""},
		"mapped onto itself, descriptors": {func(f *disktest.FS) {
			tags := make([]disktest.Tag, 120)
			for i := range tags {
				tags[i] = hostname(f)
			}
			mapAgain(f, f.Journal(plain, same(440, plain.Descriptor(1, tags...))...))
		}, "malformed journal"}, // the last one's go beyond the end
		"mapped onto itself, one tag each": {func(f *disktest.FS) {
			mapAgain(f, f.Journal(plain, same(440, plain.Descriptor(1, hostname(f)))...))
		}, ""},
		"mapped onto itself, revokes": {func(f *disktest.FS) {
			mapAgain(f, f.Journal(plain, same(440, plain.Revoke(1, make([]uint64, 252)...))...))
		}, "more than 1048576 revoked blocks"},
		"mapped onto itself, block by block": {func(f *disktest.FS) {
			super := f.Journal(plain, plain.Revoke(1))
			inode := f.InodeNumber(disktest.JournalInode)
			first := le.Uint32(inode[0x28+20:])
			be.PutUint32(super[16:], maxJournal)
			le.PutUint32(inode[4:], maxJournal*disktest.Ext4Block)
			le.PutUint32(inode[0x20:], 0)
			for slot := range uint32(15) { // twelve blocks, and one each of three levels
				le.PutUint32(inode[0x28+4*slot:], first+min(slot, 1))
			}
			below := first + 1
			for level := range 3 {
				at := f.Allocate()
				for n := range disktest.Ext4Block / 4 {
					le.PutUint32(f.Block(at)[4*n:], below)
				}
				below = uint32(at)
				le.PutUint32(inode[0x28+4*(12+level):], below)
			}
		}, "more than 16384 pieces"},
		"mapped onto itself, commits": {func(f *disktest.FS) { mapAgain(f, f.Journal(plain, same(440, plain.Commit(1))...)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := disktest.Root()
			want, err := tree(f.Bytes)
			require.NoError(t, err)
			c.damage(f)
			got, err := replayedTree(t, f)
			if c.found == "" {
				require.NoError(t, err)
				if name != "tags of the whole log" { // which has its own first block as the content
					require.Equal(t, want, got)
				}
				return
			}
			var found *Error
			require.ErrorAs(t, err, &found)
			require.Contains(t, found.Found, c.found)
		})
	}
}

// TestJournalEnds: a journal is not read on when nobody waits for it any more.
func TestJournalEnds(t *testing.T) {
	t.Parallel()
	f, l := disktest.Root(), disktest.Log{}
	mapAgain(f, f.Journal(l, same(440, l.Revoke(1))...))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, &guarded{t: t, disk: f.Bytes}, int64(len(f.Bytes)))
	require.ErrorIs(t, err, context.Canceled)
}

// TestMemoryOfJournal replays the largest journal, in which every block is another's, and all
// revokes that may be; not parallel to others, as it looks at the heap of the process.
func TestMemoryOfJournal(t *testing.T) {
	const (
		perDescriptor = 124
		disk          = 2 * maxJournal // blocks
		start         = 8192           // block of the journal
		perRevoke     = 252
		revokes       = maxRevoked/perRevoke - 1
	)
	f, l := disktest.Root(), disktest.Log{}
	super := f.Journal(l)
	le.PutUint32(f.Super()[4:], disk)
	be.PutUint32(super[16:], maxJournal)
	inode := f.InodeNumber(disktest.JournalInode)
	le.PutUint32(inode[4:], maxJournal*disktest.Ext4Block)
	// One extent for the superblock, then as many as it takes, of which a leaf knows.
	at := f.Allocate()
	leaf, tree := f.Block(at), inode[0x28:]
	copy(leaf, tree[:24])
	count := 1
	le.PutUint16(leaf[16:], 1)
	for n := 1; n < maxJournal; n += maxExtentLen {
		e := leaf[12+12*count:]
		le.PutUint32(e, uint32(n))
		le.PutUint16(e[4:], maxExtentLen)
		le.PutUint32(e[8:], uint32(start+n))
		count++
	}
	le.PutUint16(leaf[2:], uint16(count))
	le.PutUint16(leaf[4:], 84)
	le.PutUint16(tree[6:], 1)
	le.PutUint32(tree[12:], 0)
	le.PutUint32(tree[16:], uint32(at))
	le.PutUint32(tree[20:], 0)

	// First the revokes, then the blocks, then the end of the one transaction.
	more := func(block int64) []byte {
		n := block - start - 1
		switch left := maxJournal - 2 - n; {
		case n < 0 || left < 0:
			return nil
		case n < revokes:
			blocks := make([]uint64, perRevoke)
			for i := range blocks {
				blocks[i] = uint64(n*perRevoke) + uint64(i)
			}
			return l.Revoke(1, blocks...)
		case left < perDescriptor+1:
			return l.Commit(1)
		case (n-revokes)%(perDescriptor+1) != 0:
			return nil
		}
		tags := make([]disktest.Tag, perDescriptor)
		for i := range tags {
			tags[i].Block = uint64(n) + uint64(i) + disk/2 - 1
		}
		return l.Descriptor(1, tags...)
	}
	reads := 0
	var stats runtime.MemStats
	heap := func() uint64 {
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	runtime.GC()
	before, began := heap(), time.Now()
	peak := before // what was there may go meanwhile
	_, err := Open(t.Context(), &guarded{t: t, disk: f.Bytes, size: disk * disktest.Ext4Block, more: more, read: func() {
		if reads++; reads%100 == 0 {
			peak = max(peak, heap())
		}
	}}, disk*disktest.Ext4Block)
	grown := max(peak, heap()) - before
	require.NoError(t, err)
	t.Logf("%d reads in %.2f s, heap grew by at most %d KiB", reads, time.Since(began).Seconds(), grown>>10)
	require.Greater(t, reads, 8000, "all of it was read")
	require.Less(t, grown, uint64(64<<20))
}
