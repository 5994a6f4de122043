package partition

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	mbrSector     = 512
	mbrTable      = 446 // of the first of four entries of 16 bytes
	mbrProtective = 0xee
)

// mbrEntry is one of the four entries of a boot record.
type mbrEntry struct {
	kind         byte
	first, count uint64
}

func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// bootRecord reads the four entries of a boot record; false: it is none.
func bootRecord(disk io.ReaderAt, offset, size int64) (entries [4]mbrEntry, ok bool, err error) {
	raw, err := section(disk, offset, mbrSector, size)
	if err != nil || raw == nil || raw[510] != 0x55 || raw[511] != 0xaa {
		return entries, false, err
	}
	for i := range entries {
		b := raw[mbrTable+16*i:]
		// A drive's entry for booting is marked 0x80; anything else is program code.
		if b[0]&0x7f != 0 {
			return entries, false, nil
		}
		entries[i] = mbrEntry{b[4], uint64(binary.LittleEndian.Uint32(b[8:])), uint64(binary.LittleEndian.Uint32(b[12:]))}
	}
	return entries, true, nil
}

func readMBR(disk io.ReaderAt, entries []mbrEntry, size int64) (Table, error) {
	t := Table{Kind: "MBR"}
	for i, e := range entries {
		switch {
		case e.kind == 0 || e.count == 0:
		case e.extended():
			if err := t.logical(disk, e, size); err != nil {
				return Table{}, err
			}
		default:
			if err := t.add(i+1, fmt.Sprintf("%02x", e.kind), "", e.first, e.count, mbrSector, size); err != nil {
				return Table{}, err
			}
		}
	}
	if len(t.Partitions) == 0 {
		return Table{}, nil
	}
	return t, nil
}

// logical follows the chain of boot records in an extended partition: each has one
// partition, relative to itself, and the next record, relative to the first.
func (t *Table) logical(disk io.ReaderAt, extended mbrEntry, size int64) error {
	seen := map[uint64]bool{}
	for at, number := extended.first, 5; ; {
		if seen[at] {
			return bad("with a loop of extended partitions at sector %d", at)
		}
		seen[at] = true
		entries, ok, err := bootRecord(disk, int64(at)*mbrSector, size) //nolint:gosec // two times 32 bits
		if err != nil {
			return err
		}
		if !ok {
			return bad("without a boot record at sector %d, where its extended partition goes on", at)
		}
		if e := entries[0]; e.kind != 0 && e.count != 0 && !e.extended() {
			if err := t.add(number, fmt.Sprintf("%02x", e.kind), "", at+e.first, e.count, mbrSector, size); err != nil {
				return err
			}
			number++
		}
		next := entries[1]
		if !next.extended() || next.count == 0 {
			return nil
		}
		if len(seen) == mostPartitions {
			return bad("with more than %d extended partitions", mostPartitions)
		}
		at = extended.first + next.first
	}
}
