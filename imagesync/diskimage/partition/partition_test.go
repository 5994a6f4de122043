package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/disktest"
	"github.com/compute-agent/compute-agent/internal/functest"
)

func read(disk []byte) (Table, error) { return Read(bytes.NewReader(disk), int64(len(disk))) }

func content(kib int) []byte { return bytes.Repeat([]byte{1}, kib<<10) }

func gpt() []byte {
	return disktest.GPT(
		disktest.Part{Kind: disktest.LinuxData, Name: "böot", Content: content(3)},
		disktest.Part{Kind: disktest.RootX86, Name: "root", Content: content(5)},
	)
}

var gptWant = Table{Kind: "GPT", Partitions: []Partition{
	{Number: 1, Type: "0fc63daf-8483-4772-8e79-3d69d8477de4", Name: "böot", Offset: 64 * 512, Size: 3 << 10},
	{Number: 2, Type: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", Name: "root", Offset: 70 * 512, Size: 5 << 10},
}}

func TestGPT(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(b []byte){
		"sound":           func([]byte) {},
		"first header":    func(b []byte) { b[512+30] ^= 1 },
		"no first header": func(b []byte) { clear(b[512:1024]) },
		"first entries":   func(b []byte) { b[1024] ^= 1 },
		"backup":          func(b []byte) { clear(b[len(b)-512:]) },
		"backup entries":  func(b []byte) { b[len(b)-512-32*512] ^= 1 },
	} {
		disk := gpt()
		damage(disk)
		got, err := read(disk)
		require.NoError(t, err, name)
		require.Equal(t, gptWant, got, name)
	}
}

func TestMBR(t *testing.T) {
	t.Parallel()
	var parts []disktest.Part
	for i := range 6 {
		parts = append(parts, disktest.Part{Kind: "\x83", Content: content(i + 1)})
	}
	got, err := read(disktest.MBR(parts...))
	require.NoError(t, err)
	require.Equal(t, "MBR", got.Kind)
	var numbers []int
	for i, p := range got.Partitions {
		numbers = append(numbers, p.Number)
		require.Equal(t, "83", p.Type)
		require.EqualValues(t, (i+1)<<10, p.Size)
	}
	require.Equal(t, []int{1, 2, 3, 5, 6, 7}, numbers)
}

func TestNoTable(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string][]byte{
		"empty":       nil,
		"short":       make([]byte, 100),
		"zeros":       make([]byte, 4096),
		"boot sector": append(append(bytes.Repeat([]byte{0x41}, 510), 0x55, 0xaa), make([]byte, 4096)...),
		"no entries":  disktest.MBR(),
	} {
		got, err := read(disk)
		require.NoError(t, err, name)
		require.Empty(t, got.Kind, name)
	}
	// A GPT that the MBR does not mention is left from earlier.
	disk := gpt()
	disk[450] = 0x83
	got, err := read(disk)
	require.NoError(t, err)
	require.Equal(t, "MBR", got.Kind)
}

// TestHostile is the corpus of tables that are refused.
func TestHostile(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	mbr := func() []byte {
		return disktest.MBR(disktest.Part{Kind: "\x83", Content: content(1)}, disktest.Part{Kind: "\x83", Content: content(1)},
			disktest.Part{Kind: "\x83", Content: content(1)}, disktest.Part{Kind: "\x83", Content: content(1)}, disktest.Part{Kind: "\x83", Content: content(1)})
	}
	extended := func(b []byte) int { return int(le.Uint32(b[446+48+8:])) * 512 }
	signed := func(b []byte, change func(h []byte)) { // without the backup, with right sums
		clear(b[len(b)-512:])
		h := b[512:]
		change(h)
		le.PutUint32(h[16:], 0)
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	}
	entries := func(b []byte, change func(e []byte)) {
		change(b[1024:])
		signed(b, func(h []byte) { le.PutUint32(h[88:], crc32.ChecksumIEEE(b[1024:1024+128*128])) })
	}
	corpus := functest.NewCorpus(t, "hostile")
	for name, c := range map[string]struct {
		disk   []byte
		damage func(b []byte)
		found  string
	}{
		"both headers":       {gpt(), func(b []byte) { b[520]++; b[len(b)-500]++ }, "checksum is wrong"},
		"no header":          {gpt(), func(b []byte) { clear(b[512:]) }, "no GPT"},
		"both entries":       {gpt(), func(b []byte) { b[1024]++; b[len(b)-512-32*512]++ }, "checksum is wrong"},
		"header length":      {gpt(), func(b []byte) { signed(b, func(h []byte) { le.PutUint32(h[12:], 1<<31) }) }, "header of 2147483648 bytes"},
		"header place":       {gpt(), func(b []byte) { signed(b, func(h []byte) { h[24] = 9 }) }, "says it is at 9"},
		"ten million":        {gpt(), func(b []byte) { signed(b, func(h []byte) { le.PutUint32(h[80:], 10_000_000) }) }, "10000000 entries"},
		"entry size":         {gpt(), func(b []byte) { signed(b, func(h []byte) { le.PutUint32(h[84:], 1) }) }, "entries of 1 bytes"},
		"entries outside":    {gpt(), func(b []byte) { signed(b, func(h []byte) { le.PutUint64(h[72:], 1<<62) }) }, "beyond its end"},
		"partition outside":  {gpt(), func(b []byte) { entries(b, func(e []byte) { le.PutUint64(e[40:], 1<<40) }) }, "partition 1 at sectors"},
		"partition backward": {gpt(), func(b []byte) { entries(b, func(e []byte) { le.PutUint64(e[32:], 99) }) }, "partition 1 from sector 99"},
		"partition overflow": {gpt(), func(b []byte) { entries(b, func(e []byte) { le.PutUint64(e[40:], ^uint64(0)) }) }, "partition 1 from sector"},
		"MBR outside":        {mbr(), func(b []byte) { le.PutUint32(b[446+12:], ^uint32(0)) }, "partition 1 at sectors"},
		"extended outside":   {mbr(), func(b []byte) { le.PutUint32(b[446+48+8:], ^uint32(0)) }, "without a boot record"},
		"chain broken":       {mbr(), func(b []byte) { b[extended(b)+510] = 0 }, "without a boot record"},
		"chain in a loop":    {mbr(), func(b []byte) { e := b[extended(b)+446+16:]; le.PutUint32(e[8:], 0) }, "loop of extended partitions"},
		"logical outside":    {mbr(), func(b []byte) { le.PutUint32(b[extended(b)+446+12:], 1<<30) }, "partition 5 at sectors"},
	} {
		c.damage(c.disk)
		disk := corpus.Stored(name, c.disk)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := read(disk)
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Found, c.found)
		})
	}
	t.Run("long chain", func(t *testing.T) {
		t.Parallel()
		var parts []disktest.Part
		for range 300 {
			parts = append(parts, disktest.Part{Kind: "\x83", Content: content(1)})
		}
		_, err := read(disktest.MBR(parts...))
		require.ErrorContains(t, err, "more than 256")
	})
}

type failing struct{}

var errHost = errors.New("disk failure")

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errHost }

func TestHostError(t *testing.T) {
	t.Parallel()
	_, err := Read(failing{}, 1<<20)
	require.ErrorIs(t, err, errHost)
}

func FuzzRead(f *testing.F) {
	part := disktest.Part{Kind: "\x83", Content: content(1)}
	sound := [][]byte{gpt(), disktest.MBR(part, part, part, part, part)}
	f.Add(byte(0), []byte("\x00\x02\x00\x01"))
	f.Add(byte(1), []byte("\xbe\x01\x00\x05"))
	f.Fuzz(func(t *testing.T, which byte, edits []byte) {
		disk := disktest.Edit(sound[int(which)%len(sound)], edits, 1<<20)
		table, err := read(disk)
		if err != nil {
			var bad *Error
			require.ErrorAs(t, err, &bad)
			return
		}
		for _, p := range table.Partitions {
			require.True(t, p.Offset >= 0 && p.Size >= 0 && p.Offset+p.Size <= int64(len(disk)), "%+v", p)
		}
	})
}
