package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/blockcache"
)

const (
	// tableMemory holds second-level tables: each of the usual 64 KiB maps 512 MiB of the disk.
	tableMemory = 4 << 20
	// packedMemory holds decompressed clusters: neighbours are read one after the other.
	packedMemory = 16 << 20
	// zstdWindow is what the largest level of zstd takes for input of a cluster.
	zstdWindow = 8 << 20
)

// Image is the disk inside a qcow2 file: an io.ReaderAt. Not for concurrent use.
type Image struct {
	src         io.ReaderAt
	file        int64 // bytes of the file
	h           header
	clusterSize int
	mask        uint64   // clusterSize-1
	l1          []uint64 // offsets of second-level tables, 0: none
	tables      *blockcache.Cache
	unpacked    *blockcache.Cache // decompressed clusters by number
	packed      []byte            // compressed input of one cluster
	flate       io.ReadCloser
	zstd        *zstd.Decoder
}

// Open reads and checks the header and all tables of a file of size bytes. An
// *Error tells what is wrong with it.
func Open(ctx context.Context, src io.ReaderAt, size int64) (*Image, error) {
	h, err := readHeader(src, size)
	if err != nil {
		return nil, err
	}
	i := &Image{src: src, file: size, h: h, clusterSize: 1 << h.clusterBits, mask: 1<<h.clusterBits - 1}
	if err := i.readL1(); err != nil {
		return nil, err
	}
	if err := i.scan(ctx); err != nil {
		return nil, err
	}
	i.tables = blockcache.New(i.clusterSize, tableMemory)
	i.unpacked = blockcache.New(i.clusterSize, packedMemory)
	if h.compression == compressionZstd {
		i.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, fmt.Errorf("make zstd decoder: %w", err)
		}
	}
	return i, nil
}

// Size is the size of the disk in bytes.
func (i *Image) Size() int64 { return i.h.size }

// end is the size of the file for arithmetic with numbers of the image.
func (i *Image) end() uint64 { return uint64(i.file) } //nolint:gosec // positive

// Close frees what the decompressors hold.
func (i *Image) Close() {
	if i.zstd != nil {
		i.zstd.Close()
	}
}

func (i *Image) readL1() error {
	raw := make([]byte, i.h.l1Entries*8)
	if err := i.read(raw, int64(i.h.l1Offset)); err != nil { //nolint:gosec // in the file
		return err
	}
	i.l1 = make([]uint64, i.h.l1Entries)
	for n := range i.l1 {
		i.l1[n] = binary.BigEndian.Uint64(raw[n*8:])
	}
	return nil
}

// read fills p from the file; beyond its end are zeros.
func (i *Image) read(p []byte, offset int64) error {
	n, err := i.src.ReadAt(p, offset)
	if n < len(p) {
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("read qcow2 image at byte %d: %w", offset, err)
		}
		clear(p[n:])
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (i *Image) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset >= i.h.size {
		return 0, io.EOF
	}
	var short error
	if left := i.h.size - offset; int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	for done := 0; done < len(p); {
		n, err := i.readRun(p[done:], offset+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), short
}

// readRun reads from one guest cluster, and from those behind it that follow each
// other in the file as well.
func (i *Image) readRun(p []byte, offset int64) (int, error) {
	at := uint64(offset) //nolint:gosec // positive
	guest, within := at>>i.h.clusterBits, at&i.mask
	e, err := i.lookup(guest)
	if err != nil {
		return 0, err
	}
	n := min(uint64(len(p)), (i.mask+1)-within)
	switch e.kind {
	case clusterZero:
		clear(p[:n])
	case clusterPacked:
		data, err := i.unpacked.Get(guest, func(out []byte) error { return i.unpack(out, guest, e) })
		if err != nil {
			return 0, err
		}
		copy(p[:n], data[within:])
	case clusterPlain:
		for next := e.offset; n < uint64(len(p)); n = min(uint64(len(p)), n+(i.mask+1)) {
			guest, next = guest+1, next+(i.mask+1)
			if f, err := i.lookup(guest); err != nil || f.kind != clusterPlain || f.offset != next {
				break // an error shows when it is this cluster's turn
			}
		}
		if err := i.read(p[:n], int64(e.offset+within)); err != nil { //nolint:gosec // in the file
			return 0, err
		}
	}
	return int(n), nil //nolint:gosec // at most len(p)
}

// lookup finds a guest cluster.
func (i *Image) lookup(guest uint64) (extent, error) {
	perTable := (i.mask + 1) / 8
	offset := i.l1[guest/perTable]
	if offset == 0 {
		return extent{kind: clusterZero}, nil
	}
	table, err := i.tables.Get(offset, func(b []byte) error { return i.read(b, int64(offset)) }) //nolint:gosec // in the file
	if err != nil {
		return extent{}, err
	}
	return i.decode(binary.BigEndian.Uint64(table[guest%perTable*8:]))
}

// unpack decompresses one cluster. The input may have anything behind its end, as
// its length is known in sectors only.
func (i *Image) unpack(out []byte, guest uint64, e extent) error {
	if i.packed == nil {
		i.packed = make([]byte, 2*i.clusterSize+sectorSize)
	}
	in := i.packed[:e.length]
	if err := i.read(in, int64(e.offset)); err != nil { //nolint:gosec // in the file
		return err
	}
	var err error
	if i.zstd != nil {
		if err = i.zstd.Reset(bytes.NewReader(in)); err == nil {
			_, err = io.ReadFull(i.zstd, out)
		}
	} else {
		err = i.inflate(in, out)
	}
	if err != nil {
		return bad("with damaged compressed data of cluster %d of the disk at byte %d (%s)", guest, e.offset, err)
	}
	return nil
}

func (i *Image) inflate(in, out []byte) error {
	if i.flate == nil {
		i.flate = flate.NewReader(bytes.NewReader(in))
	} else if err := i.flate.(flate.Resetter).Reset(bytes.NewReader(in), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(i.flate, out)
	return err
}
