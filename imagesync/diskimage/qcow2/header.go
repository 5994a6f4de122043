// Package qcow2 reads qcow2 disk images of untrusted origin (QEMU docs/interop/qcow2.txt).
//
// Versions 2 and 3, all cluster sizes, zlib and zstd compressed clusters and zero
// clusters are read. Refused is what would make the reader open something else (a
// backing file, an external data file), what needs a key, and what it does not know
// (every incompatible feature besides dirty and compression type). Internal snapshots
// and reference counts are ignored: the active tables alone say what the disk holds.
//
// Open looks at every table entry before the first byte is read: each must point
// into the file, and no two may share a cluster. What it takes in memory is two bits
// a cluster of the file, the first-level table, and two caches.
package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Error tells that the image is damaged, hostile, or more than is read here. Any
// other error is the reader's beneath or the context's.
type Error struct {
	Found string // completes "a qcow2 image …"
	Want  string // what would work; empty: an undamaged image
}

// Error implements error.
func (e *Error) Error() string { return "qcow2 image " + e.Found }

func bad(format string, args ...any) error { return &Error{Found: fmt.Sprintf(format, args...)} }

const (
	// The limits of QEMU (block/qcow2.h: MIN_CLUSTER_BITS, MAX_CLUSTER_BITS, QCOW_MAX_L1_SIZE).
	minClusterBits = 9
	maxClusterBits = 21
	maxL1Bytes     = 32 << 20
	// maxSize is four times the largest ext4 without the feature 64bit; what is larger is a mistake.
	maxSize = 64 << 40
	// maxClusters bounds the bit maps of used clusters, 32 MiB each: a file of 16 TiB
	// with the usual clusters.
	maxClusters = 1 << 28
)

// Incompatible features (bytes 72 to 79).
const (
	featureDirty       = 1 << 0 // reference counts may be wrong: they are not used
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
)

// Values of the compression type.
const (
	compressionZlib = 0
	compressionZstd = 1
)

type header struct {
	version     uint32
	clusterBits uint32
	size        int64 // of the disk
	l1Offset    uint64
	l1Entries   int // those that the size needs
	compression byte
}

const (
	headerV2 = 72
	headerV3 = 104
)

func readHeader(src io.ReaderAt, file int64) (header, error) {
	raw := make([]byte, headerV3+8)
	n, err := src.ReadAt(raw[:min(int64(len(raw)), file)], 0)
	if err != nil && int64(n) < min(int64(len(raw)), file) {
		return header{}, fmt.Errorf("read header: %w", err)
	}
	if n < headerV2 || string(raw[:4]) != "QFI\xfb" {
		return header{}, bad("without a whole header")
	}
	be := binary.BigEndian
	h := header{version: be.Uint32(raw[4:]), clusterBits: be.Uint32(raw[20:]), l1Offset: be.Uint64(raw[40:])}
	if h.version != 2 && h.version != 3 {
		return header{}, &Error{Found: fmt.Sprintf("of version %d", h.version), Want: "version 2 or 3"}
	}
	if h.version == 3 && n < headerV3 {
		return header{}, bad("without a whole header")
	}
	if err := checkFeatures(raw, &h); err != nil {
		return header{}, err
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return header{}, bad("with clusters of 2^%d bytes, not between 2^%d and 2^%d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	size := be.Uint64(raw[24:])
	if size > maxSize {
		return header{}, &Error{Found: fmt.Sprintf("of a disk of %d bytes", size), Want: fmt.Sprintf("a disk of at most %d bytes", int64(maxSize))}
	}
	h.size = int64(size)
	return h, h.placeL1(be.Uint32(raw[36:]), file)
}

// checkFeatures refuses what cannot be read and sets the compression type.
func checkFeatures(raw []byte, h *header) error {
	be := binary.BigEndian
	if be.Uint64(raw[8:]) != 0 || be.Uint32(raw[16:]) != 0 {
		return &Error{Found: "with a backing file", Want: "an image of its own: qemu-img convert -O qcow2"}
	}
	if method := be.Uint32(raw[32:]); method != 0 {
		return &Error{Found: fmt.Sprintf("that is encrypted (method %d)", method), Want: "an image without encryption"}
	}
	if h.version == 2 {
		return nil
	}
	features := be.Uint64(raw[72:])
	for _, refusal := range []struct {
		bit         uint64
		found, want string
	}{
		{featureDataFile, "with an external data file", "an image of its own: qemu-img convert -O qcow2"},
		{featureCorrupt, "that is marked as corrupt", "a repaired one: qemu-img check -r all"},
		{featureExtendedL2, "with extended L2 entries (subclusters)", "one without: qemu-img convert -O qcow2 -o extended_l2=off"},
		{^uint64(featureDirty | featureCompression), "with features of a later version", "qemu-img convert -O qcow2 -o compat=1.1"},
	} {
		if found := features & refusal.bit; found != 0 {
			return &Error{Found: fmt.Sprintf("%s (incompatible feature bits %#x)", refusal.found, found), Want: refusal.want}
		}
	}
	length := be.Uint32(raw[100:])
	if length < headerV3 || length%8 != 0 || length > 1<<min(h.clusterBits, maxClusterBits) {
		return bad("with a header of %d bytes", length)
	}
	if length > headerV3 {
		h.compression = raw[headerV3]
	}
	if h.compression > compressionZstd || (h.compression != compressionZlib) != (features&featureCompression != 0) {
		return bad("of compression type %d with incompatible feature bits %#x", h.compression, features)
	}
	return nil
}

// placeL1 checks the place and the size of the first-level table.
func (h *header) placeL1(entries uint32, file int64) error {
	perEntry := int64(1) << (h.clusterBits + h.clusterBits - 3) // bytes of the disk
	need := (h.size + perEntry - 1) / perEntry
	if need*8 > maxL1Bytes {
		return bad("of a disk of %d bytes in clusters of %d bytes, which takes a first-level table of more than %d bytes", h.size, 1<<h.clusterBits, maxL1Bytes)
	}
	if int64(entries) < need {
		return bad("with a first-level table of %d entries where its size needs %d", entries, need)
	}
	h.l1Entries = int(need)
	end, limit := h.l1Offset+uint64(need)*8, uint64(file) //nolint:gosec // positive
	if need > 0 && (h.l1Offset == 0 || h.l1Offset&(1<<h.clusterBits-1) != 0 || end < h.l1Offset || end > limit) {
		return bad("with its first-level table at byte %d of a file of %d bytes", h.l1Offset, file)
	}
	return nil
}
