package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/disktest"
	"github.com/compute-agent/compute-agent/internal/functest"
)

var le = binary.LittleEndian

func openFS(disk []byte) (*FS, error) {
	return Open(context.Background(), bytes.NewReader(disk), int64(len(disk)))
}

// readAll reads everything that a root has, below the given depth, and returns paths with contents.
func readAll(fs *FS, number uint32, path string, depth int, out map[string]string) error {
	if depth > 20 || len(out) > 1000 {
		return bad("is too deep for this test")
	}
	i, err := fs.Inode(number, path)
	if err != nil {
		return err
	}
	if _, err := fs.Xattrs(i); err != nil {
		return err
	}
	switch i.Type() {
	case TypeDir:
		d, err := fs.OpenDir(i)
		if err != nil {
			return err
		}
		for {
			e, err := d.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := readAll(fs, e.Inode, path+"/"+e.Name, depth+1, out); err != nil {
				return err
			}
		}
	case TypeSymlink:
		target, err := fs.Readlink(i)
		out[path] = "-> " + target
		return err
	default:
		f, err := fs.Open(i)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(f, 1<<20))
		out[path] = string(text)
		return err
	}
}

func tree(disk []byte) (map[string]string, error) {
	fs, err := openFS(disk)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	return out, readAll(fs, RootInode, "", 0, out)
}

func TestRead(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("0123456789abcdef", 300)
	got, err := tree(disktest.Root(disktest.File{Name: "etc/big", Data: big}, disktest.File{Name: "etc/long", Mode: disktest.Link, Data: strings.Repeat("x", 100)},
		disktest.File{Name: disktest.LongName, Data: "long name"}, disktest.File{Name: "hole", Data: "a", Blocks: 3}).Bytes)
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"/etc/hostname": "disk\n", "/sbin/init": "#!/bin/sh\n", "/sbin/sh": "-> init", "/etc/big": big, "/etc/long": "-> " + strings.Repeat("x", 100),
		"/" + disktest.LongName: "long name", "/hole": "a" + strings.Repeat("\x00", 3*1024-1),
	}, got)
}

func TestLookup(t *testing.T) {
	t.Parallel()
	fs, err := openFS(disktest.Ext4("cloudimg-rootfs", disktest.File{Name: "etc", Mode: disktest.Dir}, disktest.File{Name: "etc/x", Data: "1"}).Bytes)
	require.NoError(t, err)
	require.Equal(t, "cloudimg-rootfs", fs.Label())
	require.EqualValues(t, 256<<10, fs.Used())
	for path, there := range map[string]bool{"etc": true, "etc/x": true, "etc/y": false, "etc/x/y": false, "usr": false} {
		i, err := fs.Lookup(path)
		require.NoError(t, err)
		require.Equal(t, there, i != nil, path)
	}
}

// indirect makes a file of blocks by number, as ext2 has them.
func indirect(f *disktest.FS, name string, size int, pointers map[int]int) {
	i := f.InodeOf(name)
	le.PutUint32(i[0x20:], 0)
	le.PutUint32(i[4:], uint32(size))
	clear(i[0x28:][:60])
	for slot, block := range pointers {
		le.PutUint32(i[0x28+4*slot:], uint32(block))
	}
}

func TestIndirect(t *testing.T) {
	t.Parallel()
	f := disktest.Root(disktest.File{Name: "f", Data: "x"})
	single, double, inner := f.Allocate(), f.Allocate(), f.Allocate()
	a, b := f.Allocate(), f.Allocate()
	copy(f.Block(a), "first")
	copy(f.Block(b), "second")
	le.PutUint32(f.Block(single)[4*5:], uint32(a))
	le.PutUint32(f.Block(double)[4*1:], uint32(inner))
	le.PutUint32(f.Block(inner)[4*2:], uint32(b))
	last := 12 + 256 + 256 + 2
	indirect(f, "f", (last+1)*1024, map[int]int{0: b, 12: single, 13: double})
	got, err := tree(f.Bytes)
	require.NoError(t, err)
	want := make([]byte, (last+1)*1024)
	copy(want, "second")
	copy(want[(12+5)*1024:], "first")
	copy(want[last*1024:], "second")
	require.True(t, bytes.Equal(want, []byte(got["/f"])))
}

// TestHostile is the corpus of file systems that are refused.
func TestHostile(t *testing.T) {
	t.Parallel()
	extents := func(f *disktest.FS, name string) []byte { return f.InodeOf(name)[0x28:] }
	corpus := functest.NewCorpus(t, "hostile")
	for name, c := range map[string]struct {
		damage func(f *disktest.FS)
		found  string
	}{
		"magic":              {func(f *disktest.FS) { f.Super()[0x38] = 0 }, "no superblock"},
		"compressed":         {func(f *disktest.FS) { f.Super()[0x60] |= 1 }, "compressed"},
		"journal device":     {func(f *disktest.FS) { f.Super()[0x60] |= 8 }, "journal of another"},
		"unknown feature":    {func(f *disktest.FS) { f.Super()[0x63] |= 0x80 }, "later version"},
		"block size":         {func(f *disktest.FS) { le.PutUint32(f.Super()[0x18:], 40) }, "blocks of 2^50"},
		"inode size":         {func(f *disktest.FS) { le.PutUint16(f.Super()[0x58:], 100) }, "inodes of 100"},
		"inode size zero":    {func(f *disktest.FS) { le.PutUint16(f.Super()[0x58:], 0) }, "inodes of 0"},
		"too many blocks":    {func(f *disktest.FS) { le.PutUint32(f.Super()[4:], 1<<30) }, "more than its partition"},
		"no blocks":          {func(f *disktest.FS) { le.PutUint32(f.Super()[4:], 0) }, "first data block"},
		"first data block":   {func(f *disktest.FS) { le.PutUint32(f.Super()[0x14:], 77) }, "first data block"},
		"no group":           {func(f *disktest.FS) { le.PutUint32(f.Super()[0x20:], 0) }, "groups of 0 blocks"},
		"no inodes a group":  {func(f *disktest.FS) { le.PutUint32(f.Super()[0x28:], 0) }, "groups of"},
		"ten million inodes": {func(f *disktest.FS) { le.PutUint32(f.Super(), 10_000_000) }, "10000000 inodes in 1 groups"},
		"inode table":        {func(f *disktest.FS) { le.PutUint32(f.Block(2)[8:], 1<<31) }, "refers to 1 blocks"},
		"root no directory":  {func(f *disktest.FS) { le.PutUint16(f.InodeNumber(2), 0xc000|0o644) }, ""},
		"external journal":   {func(f *disktest.FS) { f.Super()[0x60] |= 4 }, "journal elsewhere"},
		"damaged journal": {func(f *disktest.FS) {
			f.Super()[0x60] |= 4
			f.Super()[0x5c] |= 4
			f.Super()[0xe0] = byte(f.Inode["etc/hostname"])
		}, "damaged journal"},
		"journal nowhere": {func(f *disktest.FS) {
			f.Super()[0x60] |= 4
			f.Super()[0x5c] |= 4
			f.Super()[0xe0] = 250
		}, "refers to inode 250"},

		"extent outside":       {func(f *disktest.FS) { le.PutUint32(extents(f, "etc/hostname")[20:], 1<<31) }, "out of its range"},
		"extent too long":      {func(f *disktest.FS) { le.PutUint16(extents(f, "etc/hostname")[16:], 32000) }, "out of its range"},
		"extent in superblock": {func(f *disktest.FS) { le.PutUint32(extents(f, "etc/hostname")[20:], 1) }, "out of its range"},
		"extent high bits":     {func(f *disktest.FS) { le.PutUint16(extents(f, "etc/hostname")[18:], 0xffff) }, "out of its range"},
		"extent magic":         {func(f *disktest.FS) { extents(f, "etc/hostname")[0] = 0 }, "malformed tree"},
		"extent count":         {func(f *disktest.FS) { le.PutUint16(extents(f, "etc/hostname")[2:], 500) }, "malformed tree"},
		"extent maximum":       {func(f *disktest.FS) { le.PutUint16(extents(f, "etc/hostname")[4:], 500) }, "malformed tree"},
		"extent depth":         {func(f *disktest.FS) { le.PutUint16(extents(f, "etc/hostname")[6:], 60000) }, "depth 60000"},
		"extents overlap": {func(f *disktest.FS) {
			e := extents(f, "etc/hostname")
			le.PutUint16(e[2:], 2)
			le.PutUint16(e[16:], 5)
			copy(e[24:36], e[12:24])
			le.PutUint32(e[24:], 3)
		}, "overlapping extents"},
		"extents out of order": {func(f *disktest.FS) {
			e := extents(f, "etc/hostname")
			le.PutUint16(e[2:], 2)
			copy(e[24:36], e[12:24])
		}, "out of order"},
		"extent tree in a loop": {func(f *disktest.FS) {
			e, block := extents(f, "etc/hostname"), f.Allocate()
			le.PutUint16(e[6:], 5)
			le.PutUint32(e[16:], uint32(block))
			le.PutUint16(e[20:], 0)
			b := f.Block(block)
			copy(b, e[:24]) // a node that leads to itself, of the depth that the root must have
		}, "malformed tree"},
		"indirect outside": {func(f *disktest.FS) { indirect(f, "etc/hostname", 20<<10, map[int]int{12: 1 << 30}) }, "out of its range"},
		"direct outside":   {func(f *disktest.FS) { indirect(f, "etc/hostname", 20<<10, map[int]int{0: 1 << 30}) }, "out of its range"},
		"size negative":    {func(f *disktest.FS) { f.InodeOf("etc/hostname")[0x6f] = 0x80 }, "bytes"},
		"extra fields":     {func(f *disktest.FS) { le.PutUint16(f.InodeOf("etc/hostname")[0x80:], 5000) }, "extra fields"},

		"entry of no inode":   {func(f *disktest.FS) { entryOf(f, "etc", "hostname")[3] = 0x80 }, "beyond the last"},
		"entry of reserved":   {func(f *disktest.FS) { le.PutUint32(entryOf(f, "etc", "hostname"), 8) }, "reserved"},
		"orphan inode":        {func(f *disktest.FS) { le.PutUint16(f.InodeOf("etc/hostname")[0x1a:], 0) }, "free or deleted"},
		"free inode":          {func(f *disktest.FS) { le.PutUint32(entryOf(f, "etc", "hostname"), 60) }, "free or deleted"},
		"directory in a loop": {func(f *disktest.FS) { le.PutUint32(entryOf(f, "etc", "hostname"), 2) }, "too deep"},
		"record length zero":  {func(f *disktest.FS) { le.PutUint16(entryOf(f, "etc", "hostname")[4:], 0) }, "malformed record"},
		"record too long":     {func(f *disktest.FS) { le.PutUint16(entryOf(f, "etc", "hostname")[4:], 4000) }, "malformed record"},
		"record unaligned":    {func(f *disktest.FS) { entryOf(f, "etc", "hostname")[4]++ }, "malformed record"},
		"name beyond record":  {func(f *disktest.FS) { le.PutUint16(f.Block(f.Start["etc"])[4:], 8) }, "malformed record"},
		"name with a slash":   {func(f *disktest.FS) { entryOf(f, "etc", "hostname")[9] = '/' }, `"h/stname"`},
		"name with NUL":       {func(f *disktest.FS) { entryOf(f, "etc", "hostname")[9] = 0 }, `"h\x00stname"`},
		"name empty":          {func(f *disktest.FS) { entryOf(f, "etc", "hostname")[6] = 0 }, `name ""`},
		"directory with hole": {func(f *disktest.FS) { le.PutUint32(f.InodeOf("etc")[4:], 5<<10) }, "with a hole"},
		"directory size":      {func(f *disktest.FS) { le.PutUint32(f.InodeOf("etc")[4:], 500) }, "a directory of 500 bytes"},
		"encrypted":           {func(f *disktest.FS) { f.InodeOf("etc/hostname")[0x21] |= 8 }, "encrypted files"},
		"compressed file":     {func(f *disktest.FS) { f.InodeOf("etc/hostname")[0x20] |= 4 }, "flags"},
		"link too long":       {func(f *disktest.FS) { le.PutUint32(f.InodeOf("sbin/sh")[4:], 5000) }, "symbolic link of 5000"},
		"fast link too long":  {func(f *disktest.FS) { le.PutUint32(f.InodeOf("sbin/sh")[4:], 61) }, "without a block"},
		"link with NUL":       {func(f *disktest.FS) { f.InodeOf("sbin/sh")[0x29] = 0 }, "NUL"},
		"inline directory":    {func(f *disktest.FS) { le.PutUint32(f.InodeOf("etc")[0x20:], flagInlineData) }, "inline data"},

		"attribute block outside": {func(f *disktest.FS) { le.PutUint32(f.InodeOf("etc/hostname")[0x68:], 1<<31) }, "out of its range"},
		"attribute block magic":   {func(f *disktest.FS) { le.PutUint32(f.InodeOf("etc/hostname")[0x68:], 100) }, "malformed extended attributes"},
		"attribute name":          {func(f *disktest.FS) { attribute(f, 1, 250, 0, 0, 0) }, "malformed extended attributes"},
		"attribute value outside": {func(f *disktest.FS) { attribute(f, 1, 1, 60000, 0, 10) }, "malformed extended attributes"},
		"attribute value huge":    {func(f *disktest.FS) { attribute(f, 1, 1, 0, 0, 1<<31) }, "extended attributes of"},
		"attribute in no inode":   {func(f *disktest.FS) { attribute(f, 1, 1, 0, 1<<30, 10) }, "refers to inode"},
		"attribute in a file":     {func(f *disktest.FS) { attribute(f, 1, 1, 0, disktest.FirstInode, 10) }, "malformed extended attributes"},
		"access list":             {func(f *disktest.FS) { attribute(f, 2, 0, 40, 0, 3) }, "malformed access list"},
	} {
		f := disktest.Root()
		c.damage(f)
		file := corpus.Stored(name, f.Bytes)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tree(file)
			if c.found == "" {
				return // whatever comes, it ends
			}
			var found *Error
			require.ErrorAs(t, err, &found)
			require.Contains(t, found.Found, c.found)
		})
	}
	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		_, err := tree(disktest.Root().Bytes[:1500])
		require.ErrorContains(t, err, "only 1500 bytes")
	})
	t.Run("directories share blocks", func(t *testing.T) {
		t.Parallel()
		f := disktest.Root(disktest.File{Name: "d", Mode: disktest.Dir})
		fs, err := openFS(f.Bytes)
		require.NoError(t, err)
		fs.dirLeft = 2
		require.ErrorContains(t, readAll(fs, RootInode, "", 0, map[string]string{}), "share their blocks")
	})
}

// entryOf is the record of a name in a directory of one block.
func entryOf(f *disktest.FS, dir, name string) []byte {
	b := f.Block(f.Start[dir])
	return b[bytes.Index(b, []byte(name))-8:]
}

// attribute writes the entry of an extended attribute into an inode.
func attribute(f *disktest.FS, index, nameLength byte, offset int, inode, size uint32) {
	x := f.InodeOf("etc/hostname")[128+32:]
	le.PutUint32(x, xattrMagic)
	x[4], x[5] = nameLength, index
	le.PutUint16(x[6:], uint16(offset))
	le.PutUint32(x[8:], inode)
	le.PutUint32(x[12:], size)
}

func TestXattrs(t *testing.T) {
	t.Parallel()
	f := disktest.Root()
	attribute(f, 1, 4, 60, 0, 5)
	x := f.InodeOf("etc/hostname")[128+32+4:]
	copy(x[xattrEntry:], "name")
	copy(x[60:], "value")
	fs, err := openFS(f.Bytes)
	require.NoError(t, err)
	i, err := fs.Lookup("etc/hostname")
	require.NoError(t, err)
	got, err := fs.Xattrs(i)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"user.name": "value"}, got)
}

func FuzzTree(f *testing.F) {
	sound := disktest.Root(disktest.File{Name: "f", Data: "x", Blocks: 5}, disktest.File{Name: "d", Mode: disktest.Dir})
	attribute(sound, 1, 4, 60, 0, 5)
	logged := disktest.Logged()
	f.Add(false, []byte("\x00\x04\x00\x01"))
	f.Add(false, []byte("\x28\x1f\x00\x01\x2e\x1f\x00\x01"))
	f.Add(true, []byte("\x00\x04\x00\x00"))
	f.Fuzz(func(t *testing.T, journal bool, edits []byte) {
		disk := sound.Bytes
		if journal {
			disk = logged.Bytes
		}
		disk = disktest.Edit(disk, edits, 40<<10)
		fs, err := Open(t.Context(), &guarded{t: t, disk: disk}, int64(len(disk)))
		if err == nil {
			err = readAll(fs, RootInode, "", 0, map[string]string{})
		}
		if err != nil {
			var found *Error
			require.ErrorAs(t, err, &found)
		}
	})
}
