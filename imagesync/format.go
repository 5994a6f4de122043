package imagesync

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
)

// format is what the first bytes of a stream say it is.
type format int

const (
	formatUnknown format = iota
	formatEmpty
	formatTar
	formatGzip
	formatXZ
	formatZstd
	formatBzip2
	formatSquashfs
	formatQCOW2
	formatDisk    // a disk with partitions, or an ext4 file system
	formatForeign // recognised, and nothing that can be used
)

// sniffSize covers the furthest mark that is looked for, that of Btrfs.
const sniffSize = 68 << 10

// mark is a byte string at a fixed place.
type mark struct {
	offset int
	bytes  string
	format format
	name   string
}

// marks in the order in which they are looked for: file systems and disk images
// before the boot sector, which any of them may have as well.
var marks = []mark{
	{0, "\x1f\x8b", formatGzip, "gzip"},
	{0, "\xfd7zXZ\x00", formatXZ, "xz"},
	{0, "\x28\xb5\x2f\xfd", formatZstd, "zstd"},
	{0, "BZh", formatBzip2, "bzip2"},
	{0, "hsqs", formatSquashfs, "squashfs"},
	{0, "QFI\xfb", formatQCOW2, "a qcow2 disk image"},
	{0, "QED\x00", formatForeign, "a QED disk image"},
	{0, "KDMV", formatForeign, "a VMDK disk image"},
	{0, "COWD", formatForeign, "a VMDK disk image"},
	{0, "# Disk DescriptorFile", formatForeign, "a VMDK descriptor"},
	{0, "vhdxfile", formatForeign, "a VHDX disk image"},
	{0, "conectix", formatForeign, "a VHD disk image"},
	{0x40, "\x7f\x10\xda\xbe", formatForeign, "a VDI disk image"},
	{0, "LUKS\xba\xbe", formatForeign, "a LUKS encrypted disk image"},
	{0, "PK\x03\x04", formatForeign, "a zip archive"},
	{0, "7z\xbc\xaf\x27\x1c", formatForeign, "a 7z archive"},
	{0, "LZIP", formatForeign, "an lzip file"},
	{0, "\x04\x22\x4d\x18", formatForeign, "an lz4 file"},
	{0, "\x5d\x00\x00", formatForeign, "an lzma file"},
	{0, "070701", formatForeign, "a cpio archive"},
	{0, "\x7fELF", formatForeign, "an ELF program"},
	{0, "XFSB", formatForeign, "an XFS file system"},
	{0x438, "\x53\xef", formatDisk, "an ext4 file system"},
	{0x10040, "_BHRfS_M", formatForeign, "a Btrfs file system"},
	{0x400, "\xe2\xe1\xf5\xe0", formatForeign, "an EROFS file system"},
	{0x8001, "CD001", formatForeign, "an ISO 9660 image"},
	{0x200, "EFI PART", formatDisk, "a partitioned disk image"},
	{0x1fe, "\x55\xaa", formatDisk, "a partitioned disk image"},
}

// sniff recognises a stream by its first sniffSize bytes (fewer: that is all there
// is). The declared disk_format plays no part here: "raw" is said of nearly everything.
func sniff(head []byte) (format, string) {
	if len(head) == 0 {
		return formatEmpty, "nothing (0 bytes)"
	}
	if isTar(head) {
		return formatTar, "tar"
	}
	for _, m := range marks {
		if len(head) >= m.offset && bytes.HasPrefix(head[m.offset:], []byte(m.bytes)) {
			return m.format, m.name
		}
	}
	// A zstd stream may begin with skippable frames.
	if len(head) >= 4 && binary.LittleEndian.Uint32(head)&0xfffffff0 == 0x184d2a50 {
		return formatZstd, "zstd"
	}
	if len(bytes.Trim(head, "\x00")) == 0 {
		return formatUnknown, "zeros"
	}
	return formatUnknown, fmt.Sprintf("content of no known format (it begins with %q)", head[:min(8, len(head))])
}

// isTar verifies the checksum of the first header, which old archives without a
// magic string have too.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	field := bytes.Trim(head[148:156], " \x00")
	want, err := strconv.ParseInt(string(field), 8, 64)
	if err != nil {
		return false
	}
	var unsigned, signed int64
	for i, c := range head[:512] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c)) // some old programs added signed bytes
	}
	return want == unsigned || want == signed
}
