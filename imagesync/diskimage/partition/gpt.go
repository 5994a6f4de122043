package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// The GUID partition table (UEFI specification, chapter 5).
const (
	gptHeader      = 92
	gptEntry       = 128
	mostGPTEntries = 1024 // 128 are usual; bounds what is read
	mostEntryBytes = 1024
)

// readGPT reads the first table that is whole: behind the first sector, or at the
// end. Disks have sectors of 512 or 4096 bytes, which only the table itself tells.
func readGPT(disk io.ReaderAt, size int64) (Table, error) {
	var first error
	for _, backup := range []bool{false, true} {
		for _, sector := range []int64{512, 4096} {
			at := sector
			if backup {
				at = (size/sector - 1) * sector
			}
			t, err := gptAt(disk, at, sector, size)
			if err == nil && t.Kind != "" {
				return t, nil
			}
			if err != nil && first == nil {
				first = err
			}
		}
	}
	if first == nil {
		first = bad("with a protective MBR and no GPT")
	}
	return Table{}, first
}

// gptAt reads the table whose header is at a byte; no header there: an empty Kind.
func gptAt(disk io.ReaderAt, at, sector, size int64) (Table, error) {
	raw, err := section(disk, at, sector, size)
	if err != nil || raw == nil || string(raw[:8]) != "EFI PART" {
		return Table{}, err
	}
	le := binary.LittleEndian
	length := int64(le.Uint32(raw[12:]))
	if length < gptHeader || length > sector {
		return Table{}, bad("with a GPT header of %d bytes", length)
	}
	sum := le.Uint32(raw[16:])
	clear(raw[16:20])
	if crc32.ChecksumIEEE(raw[:length]) != sum {
		return Table{}, bad("with a GPT header whose checksum is wrong")
	}
	if own := le.Uint64(raw[24:]); own != uint64(at/sector) { //nolint:gosec // positive
		return Table{}, bad("with a GPT header at sector %d that says it is at %d", at/sector, own)
	}
	start, count, each := le.Uint64(raw[72:]), le.Uint32(raw[80:]), le.Uint32(raw[84:])
	if each < gptEntry || each%gptEntry != 0 || each > mostEntryBytes || count > mostGPTEntries {
		return Table{}, bad("with a GPT of %d entries of %d bytes", count, each)
	}
	if start > uint64(size/sector) { //nolint:gosec // positive
		return Table{}, bad("with GPT entries at sector %d, beyond its end", start)
	}
	entries, err := section(disk, int64(start)*sector, int64(count)*int64(each), size) //nolint:gosec // below size
	if err != nil {
		return Table{}, err
	}
	if entries == nil || crc32.ChecksumIEEE(entries) != le.Uint32(raw[88:]) {
		return Table{}, bad("with a GPT whose checksum is wrong")
	}
	t := Table{Kind: "GPT"}
	for i := range int(count) {
		e := entries[i*int(each):]
		if [16]byte(e) == [16]byte{} {
			continue
		}
		from, to := le.Uint64(e[32:]), le.Uint64(e[40:])
		if to < from || to == ^uint64(0) {
			return Table{}, bad("with partition %d from sector %d to %d", i+1, from, to)
		}
		if err := t.add(i+1, guid(e), gptName(e[56:128]), from, to-from+1, sector, size); err != nil {
			return Table{}, err
		}
	}
	return t, nil
}

// guid writes a GUID as everybody does: the first three fields are little-endian.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

func gptName(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2 && (b[0] != 0 || b[1] != 0); b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}
