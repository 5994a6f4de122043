// Package disktest makes small disk images for tests: sound ones, whose every field
// a test can then damage, without programs or privileges.
package disktest

import (
	"bytes"
	"encoding/binary"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// QCOW2 says how to store a disk.
type QCOW2 struct {
	Version     int    // 2 or 3; 0: 3
	ClusterBits int    // 0: 16
	Compression string // "zlib", "zstd"; empty: none
}

// Places in what Store makes: the first-level table is in the second cluster, the
// second-level tables follow, then the data.
const qcow2Header = 112

// Store makes a qcow2 image. Clusters of zeros are not stored; every third of
// them has the zero flag in version 3.
func (q QCOW2) Store(disk []byte) []byte {
	if q.Version == 0 {
		q.Version = 3
	}
	if q.ClusterBits == 0 {
		q.ClusterBits = 16
	}
	size := 1 << q.ClusterBits
	perTable := size / 8
	clusters := (len(disk) + size - 1) / size
	tables := (clusters + perTable - 1) / perTable
	l1Clusters := (tables*8 + size - 1) / size
	be := binary.BigEndian
	out := make([]byte, size*(1+l1Clusters+tables))
	copy(out, "QFI\xfb")
	be.PutUint32(out[4:], uint32(q.Version))
	be.PutUint32(out[20:], uint32(q.ClusterBits))
	be.PutUint64(out[24:], uint64(len(disk)))
	be.PutUint32(out[36:], uint32(tables))
	be.PutUint64(out[40:], uint64(size))
	if q.Version == 3 {
		be.PutUint32(out[96:], 4)
		be.PutUint32(out[100:], qcow2Header)
		if q.Compression == "zstd" {
			be.PutUint64(out[72:], 1<<3)
			out[104] = 1
		}
	}
	for n := range clusters {
		table := size * (1 + l1Clusters + n/perTable)
		be.PutUint64(out[size+n/perTable*8:], uint64(table)|1<<63)
		cluster := make([]byte, size)
		copy(cluster, disk[n*size:])
		entry := uint64(0)
		switch {
		case len(bytes.Trim(cluster, "\x00")) == 0:
			if q.Version == 3 && n%3 == 0 {
				entry = 1
			}
		default:
			if q.Compression != "" {
				if packed := q.pack(cluster); len(packed) < size { // else it is stored as it is
					sectors := (len(out)+len(packed)-1)/512 - len(out)/512
					entry = 1<<62 | uint64(sectors)<<(62-(q.ClusterBits-8)) | uint64(len(out))
					out = append(out, packed...)
					break
				}
			}
			out = append(out, make([]byte, (size-len(out)%size)%size)...)
			entry = uint64(len(out)) | 1<<63
			out = append(out, cluster...)
		}
		be.PutUint64(out[table+n%perTable*8:], entry)
	}
	return out
}

// pack compresses a cluster.
func (q QCOW2) pack(cluster []byte) []byte {
	if q.Compression == "zstd" {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err)
		}
		return w.EncodeAll(cluster, nil)
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(cluster) // into memory
	_ = w.Close()
	return b.Bytes()
}
