package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Bits of table entries.
const (
	offsetMask     = 0x00fffffffffffe00 // bits 9 to 55
	bitCompressed  = 1 << 62
	bitCopied      = 1 << 63
	bitZero        = 1 << 0
	l1Reserved     = ^uint64(offsetMask | bitCopied)
	l2Reserved     = ^uint64(offsetMask | bitCopied | bitZero)
	sectorSize     = 512
	sectorSizeMask = sectorSize - 1
)

// clusterKind says what a second-level entry stands for.
type clusterKind int

const (
	clusterZero   clusterKind = iota // nothing stored: zeros
	clusterPlain                     // a cluster of the file
	clusterPacked                    // compressed
)

// extent is where the content of a guest cluster is in the file.
type extent struct {
	kind   clusterKind
	offset uint64
	length uint64 // of compressed data, at most
}

// decode reads a second-level entry.
func (i *Image) decode(entry uint64) (extent, error) {
	if entry&bitCompressed != 0 {
		// The upper of the 62 bits count further sectors, the lower are a byte offset.
		split := 62 - (i.h.clusterBits - 8)
		offset := entry & (1<<split - 1)
		sectors := (entry &^ (bitCompressed | bitCopied)) >> split
		e := extent{kind: clusterPacked, offset: offset, length: (sectors+1)*sectorSize - offset&sectorSizeMask}
		if entry&bitCopied != 0 || offset == 0 || offset >= i.end() {
			return extent{}, bad("with compressed data at byte %d of a file of %d bytes", offset, i.file)
		}
		return e, nil
	}
	offset := entry & offsetMask
	if entry&l2Reserved != 0 || entry&bitZero != 0 && i.h.version == 2 || offset&i.mask != 0 {
		return extent{}, bad("with the malformed second-level entry %#016x", entry)
	}
	if offset == 0 || entry&bitZero != 0 {
		return extent{kind: clusterZero}, nil
	}
	// The last cluster of a file may be shorter: zeros follow.
	if offset >= i.end() {
		return extent{}, bad("with a cluster at byte %d of a file of %d bytes", offset, i.file)
	}
	return extent{kind: clusterPlain, offset: offset}, nil
}

// bitmap has a bit for every cluster of the file.
type bitmap []uint64

func (b bitmap) has(n uint64) bool { return b[n/64]&(1<<(n%64)) != 0 }
func (b bitmap) set(n uint64)      { b[n/64] |= 1 << (n % 64) }

// scan reads every table and refuses the image when an entry points outside the
// file or to what has another use: tables that contain each other, data in tables,
// one cluster for two places of the disk. Compressed data may share a cluster with
// its like.
type scan struct {
	*Image
	plain, packed bitmap
}

func (i *Image) scan(ctx context.Context) error {
	clusters := (i.end() + i.mask) >> i.h.clusterBits
	if clusters > maxClusters {
		return bad("of %d bytes in clusters of %d bytes, more than %d of them", i.file, i.clusterSize, maxClusters)
	}
	s := scan{Image: i, plain: make(bitmap, clusters/64+1), packed: make(bitmap, clusters/64+1)}
	// The header, then the first-level table.
	s.plain.set(0)
	for offset := i.h.l1Offset; offset < i.h.l1Offset+uint64(i.h.l1Entries)*8; offset += (i.mask + 1) { //nolint:gosec // at most 4 Mi
		if err := s.claim(offset, "its first-level table"); err != nil {
			return err
		}
	}
	table := make([]byte, i.clusterSize)
	for n, entry := range i.l1 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read tables of qcow2 image: %w", err)
		}
		if entry == 0 {
			continue
		}
		offset := entry & offsetMask
		if entry&l1Reserved != 0 || offset&i.mask != 0 || offset == 0 {
			return bad("with the malformed first-level entry %#016x", entry)
		}
		if offset+(i.mask+1) > i.end() {
			return bad("with a second-level table at byte %d of a file of %d bytes", offset, i.file)
		}
		if err := s.claim(offset, fmt.Sprintf("second-level table %d", n)); err != nil {
			return err
		}
		i.l1[n] = offset
		if err := i.read(table, int64(offset)); err != nil {
			return err
		}
		if err := s.table(n, table); err != nil {
			return err
		}
	}
	return nil
}

// table checks the entries of one second-level table. Those beyond the end of the
// disk are never read.
func (s *scan) table(n int, table []byte) error {
	first := int64(n) * int64(len(table)/8)
	for j := 0; j < len(table); j += 8 {
		entry := binary.BigEndian.Uint64(table[j:])
		if entry == 0 {
			continue
		}
		guest := first + int64(j/8)
		if guest >= (s.h.size+int64(s.mask))>>s.h.clusterBits { //nolint:gosec // at most 2 MiB
			return nil
		}
		e, err := s.decode(entry)
		if err != nil {
			return err
		}
		switch e.kind {
		case clusterZero:
		case clusterPlain:
			if err := s.claim(e.offset, fmt.Sprintf("cluster %d of the disk", guest)); err != nil {
				return err
			}
		case clusterPacked:
			last := min(e.offset+e.length, s.end()) - 1
			for c := e.offset >> s.h.clusterBits; c <= last>>s.h.clusterBits; c++ {
				if s.plain.has(c) {
					return bad("with overlapping clusters: compressed cluster %d of the disk is at byte %d, which has another use", guest, e.offset)
				}
				s.packed.set(c)
			}
		}
	}
	return nil
}

// claim takes a cluster of the file for one use.
func (s *scan) claim(offset uint64, who string) error {
	n := offset >> s.h.clusterBits
	if s.plain.has(n) || s.packed.has(n) {
		return bad("with overlapping clusters: %s is at byte %d, which has another use", who, offset)
	}
	s.plain.set(n)
	return nil
}
