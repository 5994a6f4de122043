package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/disktest"
	"github.com/compute-agent/compute-agent/internal/functest"
)

// sample is a disk with random data, text and zeros, whose size is no multiple of a cluster.
func sample(size int) []byte {
	disk := make([]byte, size)
	random := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < size; at += 5000 {
		piece := disk[at:min(at+5000, size)]
		switch random.IntN(3) {
		case 0:
			for i := range piece {
				piece[i] = byte(random.Uint32())
			}
		case 1:
			copy(piece, bytes.Repeat([]byte("text "), 1000))
		}
	}
	return disk
}

func open(t testing.TB, file []byte) *Image {
	t.Helper()
	i, err := Open(t.Context(), bytes.NewReader(file), int64(len(file)))
	require.NoError(t, err)
	t.Cleanup(i.Close)
	return i
}

func TestRead(t *testing.T) {
	t.Parallel()
	for _, q := range []disktest.QCOW2{
		{},
		{Version: 2},
		{ClusterBits: 9},
		{ClusterBits: 12, Compression: "zlib"},
		{ClusterBits: 9, Compression: "zstd"},
		{Version: 2, Compression: "zlib"},
		{Compression: "zstd"},
		{ClusterBits: 21, Compression: "zlib"},
		{ClusterBits: 21},
	} {
		t.Run(fmt.Sprintf("%+v", q), func(t *testing.T) {
			t.Parallel()
			disk := sample(700_001)
			i := open(t, q.Store(disk))
			require.EqualValues(t, len(disk), i.Size())
			got, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
			require.NoError(t, err)
			require.True(t, bytes.Equal(disk, got))
			random := rand.New(rand.NewPCG(3, 4))
			for range 300 {
				at, n := random.IntN(len(disk)), 1+random.IntN(100_000)
				part := make([]byte, n)
				read, err := i.ReadAt(part, int64(at))
				want := disk[at:min(at+n, len(disk))]
				require.Equal(t, len(want), read)
				require.True(t, bytes.Equal(want, part[:read]), "%d bytes at %d", n, at)
				if read < n {
					require.ErrorIs(t, err, io.EOF)
				} else {
					require.NoError(t, err)
				}
			}
			_, err = i.ReadAt(make([]byte, 1), i.Size())
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

// TestShortLastCluster: programs do not always fill the last cluster of a file.
func TestShortLastCluster(t *testing.T) {
	t.Parallel()
	disk := bytes.Repeat([]byte{7}, 1000)
	file := disktest.QCOW2{ClusterBits: 9}.Store(disk)
	i := open(t, file[:len(file)-24])
	got := make([]byte, 1000)
	_, err := i.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, disk, got)
}

// TestHostile is the corpus of images that are refused when they are opened.
func TestHostile(t *testing.T) {
	t.Parallel()
	be := binary.BigEndian
	const size = 1 << 12 // of clusters; the tables of the sample are at 1 and 2, its data from 3 on
	sound := disktest.QCOW2{ClusterBits: 12}.Store(bytes.Repeat([]byte("x"), 10*size))
	l2 := func(b []byte, n int) []byte { return b[2*size+8*n:] }
	corpus := functest.NewCorpus(t, "hostile")
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		found  string
	}{
		"empty":                    {func([]byte) []byte { return nil }, "without a whole header"},
		"other magic":              {func(b []byte) []byte { b[0] = 'q'; return b }, "without a whole header"},
		"cut in the header":        {func(b []byte) []byte { return b[:80] }, "without a whole header"},
		"version 1":                {func(b []byte) []byte { be.PutUint32(b[4:], 1); return b }, "version 1"},
		"version 4":                {func(b []byte) []byte { be.PutUint32(b[4:], 4); return b }, "version 4"},
		"backing file":             {func(b []byte) []byte { be.PutUint64(b[8:], 4000); return b }, "backing file"},
		"length of a backing file": {func(b []byte) []byte { be.PutUint32(b[16:], 10); return b }, "backing file"},
		"external data file":       {func(b []byte) []byte { b[79] |= 4; return b }, "external data file"},
		"encryption":               {func(b []byte) []byte { be.PutUint32(b[32:], 2); return b }, "encrypted"},
		"corrupt":                  {func(b []byte) []byte { b[79] |= 2; return b }, "corrupt"},
		"subclusters":              {func(b []byte) []byte { b[79] |= 16; return b }, "extended L2"},
		"unknown feature":          {func(b []byte) []byte { b[72] |= 1; return b }, "later version"},
		"compression type":         {func(b []byte) []byte { b[79] |= 8; b[104] = 9; return b }, "compression type 9"},
		"compression without bit":  {func(b []byte) []byte { b[104] = 1; return b }, "compression type 1"},
		"header length":            {func(b []byte) []byte { be.PutUint32(b[100:], 1<<31); return b }, "header of"},
		"clusters too small":       {func(b []byte) []byte { be.PutUint32(b[20:], 8); return b }, "clusters of 2^8"},
		"clusters too large":       {func(b []byte) []byte { be.PutUint32(b[20:], 63); return b }, "clusters of 2^63"},
		"absurd size":              {func(b []byte) []byte { be.PutUint64(b[24:], 1<<63+5); return b }, "disk of"},
		"size beyond the table":    {func(b []byte) []byte { be.PutUint64(b[24:], 1<<40); return b }, "its size needs"},
		"size and table absurd":    {func(b []byte) []byte { be.PutUint64(b[24:], 60<<40); be.PutUint32(b[36:], 1<<31); return b }, "first-level table of more than"},
		"table outside":            {func(b []byte) []byte { be.PutUint64(b[40:], 1<<60); return b }, "first-level table at byte"},
		"table overflow":           {func(b []byte) []byte { be.PutUint64(b[40:], ^uint64(size-1)); return b }, "first-level table at byte"},
		"table unaligned":          {func(b []byte) []byte { be.PutUint64(b[40:], size+8); return b }, "first-level table at byte"},
		"table in the header":      {func(b []byte) []byte { be.PutUint64(b[40:], 0); return b }, "first-level table at byte"},
		"cut behind the header":    {func(b []byte) []byte { return b[:size] }, "first-level table at byte"},
		"loop to the first table":  {func(b []byte) []byte { be.PutUint64(b[size:], size); return b }, "overlapping clusters: second-level table 0"},
		"loop to the header": {func(b []byte) []byte {
			be.PutUint64(l2(b, 0), 1<<63)
			be.PutUint64(l2(b, 1), size|1<<63)
			return b
		}, "overlapping clusters: cluster 1 "},
		"second table outside":     {func(b []byte) []byte { be.PutUint64(b[size:], 1<<40); return b }, "second-level table at byte"},
		"second table cut":         {func(b []byte) []byte { return b[:2*size+100] }, "second-level table at byte"},
		"second table reserved":    {func(b []byte) []byte { be.PutUint64(b[size:], 2*size|1<<60); return b }, "malformed first-level entry"},
		"second table unaligned":   {func(b []byte) []byte { be.PutUint64(b[size:], 2*size+512); return b }, "malformed first-level entry"},
		"cluster outside":          {func(b []byte) []byte { be.PutUint64(l2(b, 3), 1<<40|1<<63); return b }, "cluster at byte"},
		"cluster cut off":          {func(b []byte) []byte { return b[:len(b)-size] }, "cluster at byte"},
		"cluster unaligned":        {func(b []byte) []byte { be.PutUint64(l2(b, 3), 3*size+512); return b }, "malformed second-level entry"},
		"cluster reserved":         {func(b []byte) []byte { be.PutUint64(l2(b, 3), 3*size|2); return b }, "malformed second-level entry"},
		"cluster used twice":       {func(b []byte) []byte { copy(l2(b, 3)[:8], l2(b, 4)); return b }, "overlapping clusters"},
		"cluster in a table":       {func(b []byte) []byte { be.PutUint64(l2(b, 3), 2*size|1<<63); return b }, "overlapping clusters"},
		"compressed outside":       {func(b []byte) []byte { be.PutUint64(l2(b, 3), 1<<62|1<<40); return b }, "compressed data at byte"},
		"compressed in a table":    {func(b []byte) []byte { be.PutUint64(l2(b, 3), 1<<62|2*size+7); return b }, "overlapping clusters"},
		"compressed and copied":    {func(b []byte) []byte { be.PutUint64(l2(b, 3), 1<<63|1<<62|3*size); return b }, "compressed data at byte"},
		"zero flag in version two": {func(b []byte) []byte { be.PutUint32(b[4:], 2); b[2*size+7] |= 1; return b }, "malformed second-level entry"},
	} {
		file := corpus.Stored(name, c.damage(bytes.Clone(sound)))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), bytes.NewReader(file), int64(len(file)))
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Found, c.found)
		})
	}
	t.Run("dirty is read", func(t *testing.T) {
		t.Parallel()
		file := bytes.Clone(sound)
		file[79] |= 1
		got := make([]byte, 10)
		_, err := open(t, file).ReadAt(got, 5)
		require.NoError(t, err)
		require.Equal(t, "xxxxxxxxxx", string(got))
	})
}

func TestDamagedCompression(t *testing.T) {
	t.Parallel()
	for _, compression := range []string{"zlib", "zstd"} {
		file := disktest.QCOW2{ClusterBits: 12, Compression: compression}.Store(bytes.Repeat([]byte("text"), 4096))
		for at := 3 << 12; at < len(file); at++ {
			file[at] = 0xff
		}
		_, err := open(t, file).ReadAt(make([]byte, 100), 0)
		var bad *Error
		require.ErrorAs(t, err, &bad, compression)
		require.Contains(t, bad.Found, "damaged compressed data of cluster 0")
	}
}

// failing has an error of the host.
type failing struct{}

var errHost = errors.New("disk failure")

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errHost }

func TestHostErrors(t *testing.T) {
	t.Parallel()
	_, err := Open(t.Context(), failing{}, 1<<20)
	require.ErrorIs(t, err, errHost)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	file := disktest.QCOW2{}.Store(make([]byte, 10))
	_, err = Open(ctx, bytes.NewReader(file), int64(len(file)))
	require.ErrorIs(t, err, context.Canceled)
}

func FuzzOpen(f *testing.F) {
	var sound [][]byte
	for _, q := range []disktest.QCOW2{{ClusterBits: 9}, {ClusterBits: 9, Compression: "zlib"}, {ClusterBits: 9, Compression: "zstd"}, {ClusterBits: 10, Version: 2}} {
		sound = append(sound, q.Store(sample(6000)))
	}
	for which := range sound {
		f.Add(byte(which), []byte("\x00\x00\x00\x00\x4f\x00\x00\x01"), uint16(0))
		f.Add(byte(which), []byte("\x01\x02\x00\x02\x08\x04\x00\x40"), uint16(9000))
	}
	f.Fuzz(func(t *testing.T, which byte, edits []byte, end uint16) {
		file := disktest.Edit(sound[int(which)%len(sound)], edits, 1<<20)
		if end > 0 {
			file = file[:min(int(end), len(file))]
		}
		i, err := Open(t.Context(), bytes.NewReader(file), int64(len(file)))
		var bad *Error
		if err != nil {
			require.ErrorAs(t, err, &bad)
			return
		}
		defer i.Close()
		buffer := make([]byte, 10_000)
		for at := int64(0); at < min(i.Size(), 100_000); at += int64(len(buffer)) {
			if _, err := i.ReadAt(buffer, at); err != nil && !errors.Is(err, io.EOF) {
				require.ErrorAs(t, err, &bad)
			}
		}
	})
}
