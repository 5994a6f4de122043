package unsquash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// superblockSize is that of version 4 (struct squashfs_super_block in the kernel's fs/squashfs/squashfs_fs.h).
const superblockSize = 96

// inspect refuses an image that says itself that it is too large, or that it is longer than it is: before anything
// is unpacked. One that lies meets the watch. What follows the length that it states is padding and nobody's affair.
func inspect(image string, entries int) error {
	file, err := os.Open(image)
	if err != nil {
		return fmt.Errorf("open squashfs: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("open squashfs: %w", err)
	}
	var head [superblockSize]byte
	if _, err := io.ReadFull(file, head[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{Reason: fmt.Sprintf("it is cut off after %d bytes, in its superblock", info.Size())}
	} else if err != nil {
		return fmt.Errorf("read squashfs: %w", err)
	}
	// The inodes are at the same place in all versions. One is the root, which is no entry; device nodes count here,
	// although they are left out later. Names of hard links do not: the check of the tree counts them.
	if n := int64(binary.LittleEndian.Uint32(head[4:])) - 1; n > int64(entries) {
		return &Error{Reason: fmt.Sprintf("its superblock tells of %d entries, more than the limit of %d", n, entries)}
	}
	if major := binary.LittleEndian.Uint16(head[28:]); major != 4 {
		return nil // the length is elsewhere; the program knows where
	}
	if size := binary.LittleEndian.Uint64(head[40:]); size > uint64(info.Size()) { //nolint:gosec // not negative
		return &Error{Reason: fmt.Sprintf("it is cut off: of the %d bytes that its superblock tells of, %d are there", size, info.Size())}
	}
	return nil
}
