// Package partition reads the partition tables of untrusted disks: MBR with
// extended partitions, and GPT, whose backup counts when the first one is damaged.
package partition

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// Error tells that a table is damaged or hostile. Any other error is the reader's beneath.
type Error struct{ Found string } // completes "a disk …"

// Error implements error.
func (e *Error) Error() string { return "disk " + e.Found }

func bad(format string, args ...any) error { return &Error{Found: fmt.Sprintf(format, args...)} }

// Partition is one partition of a disk.
type Partition struct {
	Number int    // as Linux numbers it
	Type   string // GPT: the type's GUID in lower case; MBR: two hexadecimal digits
	Name   string // GPT only
	Offset int64  // bytes from the beginning of the disk
	Size   int64  // bytes
}

// Table is the partition table of a disk.
type Table struct {
	Kind       string // "GPT", "MBR"; empty: none
	Partitions []Partition
}

// mostPartitions bounds either kind; Linux stops at 256 minor numbers a disk.
const mostPartitions = 256

// Read reads the table of a disk of size bytes. Neither table: an empty Kind. A
// boot sector of a file system looks like an MBR; the caller looks for file systems first.
func Read(disk io.ReaderAt, size int64) (Table, error) {
	entries, ok, err := bootRecord(disk, 0, size)
	if err != nil || !ok {
		return Table{}, err
	}
	// As Linux does (block/partitions/efi.c:is_pmbr_valid): without the protective
	// entry a GPT is what an earlier use of the disk has left.
	if slices.ContainsFunc(entries[:], func(e mbrEntry) bool { return e.kind == mbrProtective }) {
		return readGPT(disk, size)
	}
	return readMBR(disk, entries[:], size)
}

// section reads n bytes; a disk that ends before them gives nil.
func section(disk io.ReaderAt, offset, n, size int64) ([]byte, error) {
	if offset < 0 || offset > size-n {
		return nil, nil
	}
	b := make([]byte, n)
	if read, err := disk.ReadAt(b, offset); int64(read) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read disk at byte %d: %w", offset, err)
	}
	return b, nil
}

// add appends a partition of sectors after checking that it is on the disk.
func (t *Table) add(number int, kind, name string, first, count uint64, sector, size int64) error {
	limit := uint64(size) / uint64(sector) //nolint:gosec // sizes are positive
	if first >= limit || count > limit-first {
		return bad("with partition %d at sectors %d to %d, beyond its end at %d", number, first, first+count-1, limit)
	}
	if len(t.Partitions) == mostPartitions {
		return bad("with more than %d partitions", mostPartitions)
	}
	t.Partitions = append(t.Partitions, Partition{
		Number: number, Type: kind, Name: name, Offset: int64(first) * sector, Size: int64(count) * sector, //nolint:gosec // below size
	})
	return nil
}
