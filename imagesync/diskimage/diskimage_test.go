package diskimage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/disktest"
	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/internal/functest"
)

var (
	le    = binary.LittleEndian
	roomy = unpack.Limits{Entries: 1000, Bytes: 64 << 20, MaxID: 65535}
)

// copyOut copies the root of a disk into a new directory.
func copyOut(t testing.TB, disk []byte, format Format, limits unpack.Limits) (string, unpack.Stats, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.Mkdir(dir, 0o755))
	img := Image{File: bytes.NewReader(disk), Size: int64(len(disk)), Format: format, Arch: "x86_64"}
	stats, err := Copy(t.Context(), img, dir, limits)
	return dir, stats, err
}

// named is a root whose hostname says which one it is.
func named(name, label string) []byte {
	return disktest.Ext4(label, disktest.File{Name: "etc", Mode: disktest.Dir}, disktest.File{Name: "usr", Mode: disktest.Dir},
		disktest.File{Name: "etc/hostname", Data: name}).Bytes
}

// other is a partition with a mark of some file system.
func other(offset int, mark string) []byte {
	b := make([]byte, 128<<10)
	copy(b[offset:], mark)
	return b
}

func TestChooseRoot(t *testing.T) {
	t.Parallel()
	notRoot := disktest.Ext4("", disktest.File{Name: "vmlinuz", Data: "x"}).Bytes
	efi := disktest.Part{Kind: disktest.LinuxData, Content: other(0x52, "FAT32")}
	data := func(name string, content []byte) disktest.Part {
		return disktest.Part{Kind: disktest.LinuxData, Name: name, Content: content}
	}
	for name, c := range map[string]struct {
		disk []byte
		want string
	}{
		"no table":              {named("bare", ""), "bare"},
		"MBR":                   {disktest.MBR(disktest.Part{Kind: "\x83", Content: named("mbr", "")}), "mbr"},
		"logical":               {disktest.MBR(mbrPart(notRoot), mbrPart(notRoot), mbrPart(notRoot), mbrPart(notRoot), mbrPart(named("logical", ""))), "logical"},
		"behind boot":           {disktest.GPT(efi, data("", notRoot), data("", named("third", ""))), "third"},
		"type before label":     {disktest.GPT(data("", named("a", "cloudimg-rootfs")), disktest.Part{Kind: disktest.RootX86, Content: named("b", "")}), "b"},
		"label before content":  {disktest.GPT(data("", named("a", "")), data("", named("b", "cloudimg-rootfs"))), "b"},
		"name before content":   {disktest.GPT(data("", named("a", "")), data("root", named("b", ""))), "b"},
		"first of equals":       {disktest.GPT(data("", named("a", "")), data("", named("b", ""))), "a"},
		"damaged one beside it": {disktest.GPT(data("", damaged()), data("", named("b", ""))), "b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, format := range []Format{Raw, QCOW2} {
				disk := c.disk
				if format == QCOW2 {
					disk = disktest.QCOW2{Compression: "zlib"}.Store(disk)
				}
				dir, _, err := copyOut(t, disk, format, roomy)
				require.NoError(t, err)
				got, err := os.ReadFile(filepath.Join(dir, "etc/hostname"))
				require.NoError(t, err)
				require.Equal(t, c.want, string(got))
			}
		})
	}
}

// TestDataBehindTheEnd: file systems, partition tables and qcow2 say themselves where they end, and disks are written to larger
// ones. What follows is nobody's, in whatever number of bytes.
func TestDataBehindTheEnd(t *testing.T) {
	t.Parallel()
	garbage := bytes.Repeat([]byte{0xa5, 'x', 0x5a}, 33_333)
	part := disktest.Part{Kind: disktest.RootX86, Content: named("sound", "")}
	for name, disk := range map[string][]byte{
		"no table": part.Content, "MBR": disktest.MBR(mbrPart(part.Content)), "GPT": disktest.GPT(part),
	} {
		for format, file := range map[Format][]byte{Raw: disk, QCOW2: disktest.QCOW2{Compression: "zlib"}.Store(disk)} {
			for length, behind := range map[string][]byte{"a byte": garbage[:1], "a sector": garbage[:512], "garbage": garbage, "itself": file} {
				t.Run(name+"/"+string(format)+"/"+length, func(t *testing.T) {
					t.Parallel()
					dir, _, err := copyOut(t, slices.Concat(file, behind), format, roomy)
					require.NoError(t, err)
					got, err := os.ReadFile(filepath.Join(dir, "etc/hostname"))
					require.NoError(t, err)
					require.Equal(t, "sound", string(got))
				})
			}
		}
	}
}

func mbrPart(content []byte) disktest.Part { return disktest.Part{Kind: "\x83", Content: content} }

// damaged is a root that cannot be read: its directory's block is outside.
func damaged() []byte {
	f := disktest.Root()
	le.PutUint32(f.InodeNumber(2)[0x28+20:], 1<<31)
	return f.Bytes
}

// TestRefused: the error says what was found and what would work.
func TestRefused(t *testing.T) {
	t.Parallel()
	root := func(content []byte) []byte {
		return disktest.GPT(disktest.Part{Kind: disktest.RootX86, Content: content})
	}
	corpus := functest.NewCorpus(t, "refused")
	for name, c := range map[string]struct {
		disk        []byte
		format      Format
		found, want string
	}{
		"xfs":                 {root(other(0, "XFSB")), Raw, "xfs in partition 1", "ext4"},
		"btrfs":               {root(other(0x10040, "_BHRfS_M")), Raw, "btrfs in partition 1", "ext4"},
		"LVM":                 {disktest.MBR(disktest.Part{Kind: "\x8e", Content: other(0x218, "LVM2 001")}), Raw, "LVM in partition 1", "tar archive"},
		"LUKS":                {disktest.GPT(disktest.Part{Kind: disktest.LinuxData, Content: other(0, "LUKS\xba\xbe")}), Raw, "LUKS encryption", "not encrypted"},
		"swap only":           {disktest.GPT(disktest.Part{Kind: disktest.LinuxData, Content: other(0xff6, "SWAPSPACE2")}), Raw, "swap in partition 1", "ext4"},
		"xfs beside ext4":     {disktest.GPT(disktest.Part{Kind: disktest.RootX86, Content: other(0, "XFSB")}, disktest.Part{Kind: disktest.LinuxData, Content: named("a", "")}), Raw, "root as xfs", "ext4"},
		"FAT":                 {other(0x36, "FAT16"), Raw, "vfat without a partition table", "ext4"},
		"nothing":             {make([]byte, 1<<20), Raw, "neither partitions nor a known file system", "ext4"},
		"empty":               {nil, Raw, "neither partitions nor a known file system", "ext4"},
		"no root":             {disktest.Ext4("", disktest.File{Name: "vmlinuz", Data: "x"}).Bytes, Raw, "no /etc", "root file system"},
		"no init":             {disktest.Ext4("", disktest.File{Name: "etc", Mode: disktest.Dir}).Bytes, Raw, "no /sbin and no /usr", "init"},
		"other architecture":  {disktest.GPT(disktest.Part{Kind: disktest.RootARM64, Content: named("a", "")}), Raw, "root for aarch64", "x86_64"},
		"damaged":             {damaged(), Raw, "out of its range", ""},
		"damaged table":       {gptWithoutSum(), Raw, "checksum is wrong", ""},
		"many partitions":     {manyPartitions(), Raw, "more", "ext4"},
		"qcow2 with backing":  {backed(), QCOW2, "a qcow2 image with a backing file", "qemu-img convert"},
		"qcow2 of nothing":    {disktest.QCOW2{}.Store(make([]byte, 1<<20)), QCOW2, "neither partitions", "ext4"},
		"cut qcow2":           {disktest.QCOW2{}.Store(named("a", ""))[:150_000], QCOW2, "a qcow2 image with", ""},
		"qcow2 in a qcow2":    {disktest.QCOW2{}.Store(disktest.QCOW2{}.Store(named("a", ""))), QCOW2, "neither partitions", "ext4"},
		"directory in a loop": {looped(), Raw, "in two places or below itself", ""},
		"file in two places":  {linkedDirectory(), Raw, "in two places or below itself", ""},
	} {
		disk := corpus.Stored(name, c.disk)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := copyOut(t, disk, c.format, roomy)
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Found, c.found)
			require.Contains(t, bad.Want, c.want)
		})
	}
}

func gptWithoutSum() []byte {
	b := disktest.GPT(mbrPart(named("a", "")))
	b[520]++
	b[len(b)-500]++
	return b
}

func manyPartitions() []byte {
	parts := make([]disktest.Part, 20)
	for i := range parts {
		parts[i] = disktest.Part{Kind: disktest.LinuxData, Content: make([]byte, 512)}
	}
	return disktest.GPT(parts...)
}

func backed() []byte {
	b := disktest.QCOW2{}.Store(named("a", ""))
	binary.BigEndian.PutUint64(b[8:], 200)
	return b
}

func looped() []byte {
	f := disktest.Root(disktest.File{Name: "a", Mode: disktest.Dir}, disktest.File{Name: "a/b", Mode: disktest.Dir})
	b := f.Block(f.Start["a"])
	le.PutUint32(b[bytes.Index(b, []byte("b\x00"))-8:], uint32(f.Inode["a"]))
	return f.Bytes
}

func linkedDirectory() []byte {
	f := disktest.Root(disktest.File{Name: "a", Mode: disktest.Dir}, disktest.File{Name: "b", Mode: disktest.Dir})
	b := f.Block(f.Start[""])
	le.PutUint32(b[bytes.Index(b, []byte("b\x00"))-8:], uint32(f.Inode["a"]))
	return f.Bytes
}

// TestTree looks at what is kept and what is not.
func TestTree(t *testing.T) {
	t.Parallel()
	f := disktest.Root(
		disktest.File{Name: "etc/fstab", Data: "UUID=1 / ext4 defaults 0 1\nproc /proc proc defaults 0 0\n"},
		disktest.File{Name: "etc/link", LinkTo: "etc/hostname"},
		disktest.File{Name: "hole", Data: "x", Blocks: 40_000},
		disktest.File{Name: "pipe", Mode: 0x1000 | 0o600},
		disktest.File{Name: "socket", Mode: 0xc000 | 0o600},
		disktest.File{Name: "disk", Mode: 0x6000 | 0o600, Data: "\x01"},
	)
	le.PutUint32(f.InodeOf("disk")[0x28:], 0x0801)
	le.PutUint16(f.InodeOf("etc/hostname"), 0x8000|0o640)
	dir, stats, err := copyOut(t, f.Bytes, Raw, roomy)
	require.NoError(t, err)
	require.Equal(t, 1, stats.Devices)
	require.EqualValues(t, 40_000<<10+len("disk\n#!/bin/sh\n"), stats.Bytes-int64(len(fstabMark)+len("UUID=1 / ext4 defaults 0 1\nproc /proc proc defaults 0 0\n")))
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, fstabMark+"UUID=1 / ext4 defaults 0 1\nproc /proc proc defaults 0 0\n", read("etc/fstab"))
	a, err := os.Stat(filepath.Join(dir, "etc/hostname"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), a.Mode())
	require.EqualValues(t, 1_600_000_000, a.ModTime().Unix())
	b, err := os.Stat(filepath.Join(dir, "etc/link"))
	require.NoError(t, err)
	require.True(t, os.SameFile(a, b))
	hole, err := os.Stat(filepath.Join(dir, "hole"))
	require.NoError(t, err)
	require.EqualValues(t, 40_000<<10, hole.Size())
	require.NoFileExists(t, filepath.Join(dir, "disk"))
	require.NoFileExists(t, filepath.Join(dir, "socket"))
}

// TestLimits are those of archives, with their words.
func TestLimits(t *testing.T) {
	t.Parallel()
	whiteout := disktest.Root(disktest.File{Name: "w", Mode: 0x2000 | 0o600})
	clear(whiteout.InodeOf("w")[0x28:][:60])
	foreign := disktest.Root(disktest.File{Name: "x", Data: "x"})
	foreign.InodeOf("x")[0x7a] = 1
	bomb := disktest.Root(disktest.File{Name: "bomb", Blocks: 1 << 21})
	overlay := disktest.Root(disktest.File{Name: "x", Data: "x"})
	attr := overlay.InodeOf("x")[128+32:]
	copy(attr, "\x00\x00\x02\xea")
	attr[4], attr[5] = byte(len("overlay.opaque")), 4
	copy(attr[4+16:], "overlay.opaque")
	for name, c := range map[string]struct {
		disk   []byte
		limits unpack.Limits
		reason string
	}{
		"entries":            {disktest.Root().Bytes, unpack.Limits{Entries: 3, Bytes: 1 << 20, MaxID: 65535}, "limit of 3 entries"},
		"bytes":              {disktest.Root().Bytes, unpack.Limits{Entries: 30, Bytes: 3, MaxID: 65535}, "larger than 3 bytes"},
		"sparse bomb":        {bomb.Bytes, roomy, "makes the content larger"},
		"whiteout":           {whiteout.Bytes, roomy, "whiteout"},
		"owner":              {foreign.Bytes, roomy, "belongs to 0:65536"},
		"overlay attributes": {overlay.Bytes, roomy, "overlayfs attribute trusted.overlay.opaque"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := copyOut(t, c.disk, Raw, c.limits)
			var bad *unpack.Error
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Reason, c.reason)
		})
	}
}

func TestSpaceAndHost(t *testing.T) {
	t.Parallel()
	disk := disktest.Root().Bytes
	full := errors.New("full")
	asked := int64(0)
	_, err := Copy(t.Context(), Image{File: bytes.NewReader(disk), Size: int64(len(disk)), Format: Raw, Space: func(n int64) error {
		asked = n
		return full
	}}, t.TempDir(), roomy)
	require.ErrorIs(t, err, full)
	require.EqualValues(t, disktest.Ext4Blocks/2*disktest.Ext4Block, asked)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := errors.New("too slow")
	cancel(ended)
	_, err = Copy(ctx, Image{File: bytes.NewReader(disk), Size: int64(len(disk)), Format: Raw}, t.TempDir(), roomy)
	require.ErrorIs(t, err, ended)
	_, err = Copy(t.Context(), Image{File: panics{}, Size: 1 << 20, Format: Raw}, t.TempDir(), roomy)
	var bad *Error
	require.ErrorAs(t, err, &bad)
	require.Contains(t, bad.Found, "cannot cope")
}

type panics struct{}

func (panics) ReadAt([]byte, int64) (int, error) { panic("index out of range") }

func TestFstab(t *testing.T) {
	t.Parallel()
	in := "# comment\n\nUUID=1 / ext4 rw 0 1\n  LABEL=BOOT /boot ext4 defaults 0 2\n/dev/sda2 none swap sw 0 0\n/swapfile none swap sw 0 0\n" +
		"tmpfs /tmp tmpfs size=1g 0 0\nserver:/home /home nfs ro 0 0\nPARTUUID=x\n//host/share /mnt cifs ro 0 0\n/srv/a /srv/b none bind 0 0\nPARTLABEL=efi /boot/efi vfat umask=77 0 1"
	want := "# comment\n\n" + fstabMark + "UUID=1 / ext4 rw 0 1\n" + fstabMark + "  LABEL=BOOT /boot ext4 defaults 0 2\n" + fstabMark + "/dev/sda2 none swap sw 0 0\n" +
		fstabMark + "/swapfile none swap sw 0 0\ntmpfs /tmp tmpfs size=1g 0 0\nserver:/home /home nfs ro 0 0\nPARTUUID=x\n//host/share /mnt cifs ro 0 0\n" +
		"/srv/a /srv/b none bind 0 0\n" + fstabMark + "PARTLABEL=efi /boot/efi vfat umask=77 0 1"
	require.Equal(t, want, string(containerFstab([]byte(in))))
	require.Equal(t, want, string(containerFstab([]byte(want))), "again changes nothing")
}

func FuzzCopy(f *testing.F) {
	bare := disktest.Root(disktest.File{Name: "etc/link", LinkTo: "etc/hostname"}, disktest.File{Name: "hole", Data: "x", Blocks: 9}).Bytes
	sound := [][]byte{bare, disktest.GPT(disktest.Part{Kind: disktest.RootX86, Content: bare}), disktest.QCOW2{ClusterBits: 12}.Store(bare), disktest.Logged().Bytes}
	f.Add(byte(0), []byte("\x00\x04\x00\x01"))
	f.Add(byte(1), []byte("\x28\x9f\x00\x01\x2e\x9f\x00\x01"))
	f.Add(byte(2), []byte("\x28\x50\x00\x01"))
	f.Add(byte(3), []byte("\x00\x04\x00\x00"))
	f.Fuzz(func(t *testing.T, which byte, edits []byte) {
		format := Raw
		if int(which)%len(sound) == 2 {
			format = QCOW2
		}
		_, _, err := copyOut(t, disktest.Edit(sound[int(which)%len(sound)], edits, 80<<10), format, unpack.Limits{Entries: 100, Bytes: 1 << 20, MaxID: 65535})
		var bad *Error
		var entry *unpack.Error
		if err != nil && !errors.As(err, &bad) && !errors.As(err, &entry) {
			t.Fatal(err)
		}
		if bad != nil && strings.Contains(bad.Found, "cannot cope") {
			t.Fatal("a panic")
		}
	})
}
