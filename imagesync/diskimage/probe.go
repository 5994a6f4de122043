package diskimage

import (
	"bytes"
	"io"
)

// kindExt is the only kind of file system that is read.
const kindExt = "ext4"

// signature tells a kind of content by bytes at a fixed place.
type signature struct {
	offset int64
	bytes  string
	kind   string
}

// signatures, in the order in which they are looked for: containers of file systems
// first, and FAT last, since its mark is that of any boot sector.
var signatures = []signature{
	{0, "LUKS\xba\xbe", "LUKS encryption"},
	{0x18, "LVM2 001", "LVM"},
	{0x218, "LVM2 001", "LVM"},
	{0x418, "LVM2 001", "LVM"},
	{0x618, "LVM2 001", "LVM"},
	{0x1000, "\xfc\x4e\x2b\xa9", "Linux software RAID"},
	{0, "XFSB", "xfs"},
	{0x10040, "_BHRfS_M", "btrfs"},
	{0x438, "\x53\xef", kindExt},
	{0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcachefs"},
	{0x400, "\x10\x20\xf5\xf2", "f2fs"},
	{0x400, "\xe2\xe1\xf5\xe0", "erofs"},
	{0, "hsqs", "squashfs"},
	{0xff6, "SWAPSPACE2", "swap"},
	{0, "-FVE-FS-", "BitLocker encryption"},
	{3, "-FVE-FS-", "BitLocker encryption"},
	{3, "NTFS    ", "ntfs"},
	{3, "EXFAT   ", "exfat"},
	{0x8001, "CD001", "iso9660"},
	{0x55c, "\x19\x54\x01\x19", "ufs"},
	{0x52, "FAT32", "vfat"},
	{0x36, "FAT1", "vfat"},
}

// probeSize covers the furthest signature.
const probeSize = 0x10040 + 8

// probe recognises what a partition holds; empty: nothing known.
func probe(disk io.ReaderAt) string {
	head := make([]byte, probeSize)
	n, _ := disk.ReadAt(head, 0) // what cannot be read is not recognised
	head = head[:n]
	for _, s := range signatures {
		if int64(len(head)) > s.offset && bytes.HasPrefix(head[s.offset:], []byte(s.bytes)) {
			return s.kind
		}
	}
	return ""
}
