package disktest

import (
	"encoding/binary"
	"hash/crc32"
	"unicode/utf16"
)

// Part is a partition to be made.
type Part struct {
	Kind    string // GPT: the type's GUID as 16 bytes of the disk; MBR: one byte
	Name    string // GPT only
	Content []byte // a multiple of 512 bytes
}

// RootX86 is the type of a root partition of x86_64, as it is on the disk.
const RootX86 = "\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09"

// RootARM64 is the type of a root partition of aarch64.
const RootARM64 = "\x45\xb0\x21\xb9\xf0\x1d\xc3\x41\xaf\x44\x4c\x6f\x28\x0d\x3f\xae"

// LinuxData is the type of any partition of Linux.
const LinuxData = "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4"

const firstSector = 64

// MBR makes a disk. Partitions beyond the third are logical ones in an extended one.
func MBR(parts ...Part) []byte {
	disk := make([]byte, firstSector*512)
	entry := func(record int, slot int, kind byte, first, count int) {
		e := disk[record+446+16*slot:]
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], uint32(first))
		binary.LittleEndian.PutUint32(e[12:], uint32(count))
		disk[record+510], disk[record+511] = 0x55, 0xaa
	}
	extended, last := 0, 0
	for i, p := range parts {
		count := len(p.Content) / 512
		if i < 3 {
			entry(0, i, p.Kind[0], len(disk)/512, count)
			disk = append(disk, p.Content...)
			continue
		}
		record := len(disk)
		disk = append(disk, make([]byte, 512)...)
		if extended == 0 {
			extended = record
		} else {
			entry(last, 1, 0x05, (record-extended)/512, count+1)
		}
		entry(record, 0, p.Kind[0], 1, count)
		disk = append(disk, p.Content...)
		last = record
	}
	if extended != 0 {
		entry(0, 3, 0x05, extended/512, (len(disk)-extended)/512)
	}
	return disk
}

// GPT makes a disk with both tables and the protective MBR.
func GPT(parts ...Part) []byte {
	const entries, each = 128, 128
	table := make([]byte, entries*each)
	disk := make([]byte, firstSector*512)
	for i, p := range parts {
		e := table[i*each:]
		copy(e, p.Kind)
		e[16] = byte(i + 1)
		binary.LittleEndian.PutUint64(e[32:], uint64(len(disk)/512))
		disk = append(disk, p.Content...)
		binary.LittleEndian.PutUint64(e[40:], uint64(len(disk)/512-1))
		for j, unit := range utf16.Encode([]rune(p.Name)) {
			binary.LittleEndian.PutUint16(e[56+2*j:], unit)
		}
	}
	backup := len(disk)/512 + 32
	disk = append(disk, table...)
	disk = append(disk, make([]byte, 512)...)
	copy(disk[1024:], table)
	header := func(at, other, entriesAt int) {
		h := disk[at*512:]
		copy(h, "EFI PART")
		le := binary.LittleEndian
		le.PutUint32(h[8:], 0x10000)
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], uint64(at))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[72:], uint64(entriesAt))
		le.PutUint32(h[80:], entries)
		le.PutUint32(h[84:], each)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	}
	header(1, backup, 2)
	header(backup, 1, backup-32)
	e := disk[446:]
	e[4] = 0xee
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(len(disk)/512-1))
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}
