//go:build functional

package unsquash

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// TestDamaged cuts an image off at the borders of its parts and in the middle of them, and puts other data behind it.
func TestDamaged(t *testing.T) {
	o := setUp(t)
	_, err := exec.LookPath("mksquashfs")
	functest.Need(t, err == nil, "mksquashfs")
	script(t, "d=$(mktemp -d); cd $d; for d in a b c; do mkdir $d; for i in 1 2 3 4; do head -c 150000 /dev/urandom > $d/$i; ln -s $i $d/l$i; done; done; echo tail > fragment; "+
		"setfattr -n user.k -v v fragment; chown 3:4 fragment; mksquashfs . "+o.Image+" -noappend -quiet -no-progress; rm -r $d")
	image, err := os.ReadFile(o.Image)
	require.NoError(t, err)
	word := func(at int) int { return int(binary.LittleEndian.Uint64(image[at:])) }
	size, ids, xattrs, inodes, dirs, fragments, export := word(40), word(48), word(56), word(64), word(72), word(80), word(88)
	require.Less(t, size, len(image), "it is padded")
	unpack := func(name string, data []byte) (string, error) {
		o.Target = filepath.Join(t.TempDir(), name)
		require.NoError(t, os.Mkdir(o.Target, 0o755))
		require.NoError(t, os.WriteFile(o.Image, data, 0o600))
		return o.Target, Run(t.Context(), o)
	}
	whole, err := unpack("whole", image)
	require.NoError(t, err)

	for name, cut := range map[string]int{
		"magic": 4, "superblock": superblockSize - 1, "behind the superblock": superblockSize, "first file": 1000, "data": inodes / 2,
		"inodes": inodes, "in the inodes": (inodes + dirs) / 2, "directories": dirs, "in the directories": dirs + 5, "fragments": fragments,
		"export": export, "ids": ids, "attributes": xattrs, "last byte": size - 1,
	} {
		t.Run(name, func(t *testing.T) {
			data := bytes.Clone(image[:cut])
			_, err := unpack("cut", data)
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Reason, "cut off")
			if cut < superblockSize {
				return
			}
			// With a length that fits it is the program that notices.
			binary.LittleEndian.PutUint64(data[40:], uint64(cut))
			_, err = unpack("fitted", data)
			require.ErrorAs(t, err, &bad)
			require.NotContains(t, bad.Reason, "it is cut off")
			t.Logf("at %d of %d: %s", cut, size, bad.Reason)
		})
	}

	// So it does when one of the tables that it needs is zeros.
	for name, at := range map[string]int{"inodes": inodes, "directories": dirs, "fragments": fragments, "ids": ids, "attributes": xattrs} {
		t.Run("zeros for "+name, func(t *testing.T) {
			data := bytes.Clone(image)
			clear(data[at : at+8])
			_, err := unpack("zeroed", data)
			var bad *Error
			require.ErrorAs(t, err, &bad)
			t.Log(bad.Reason)
		})
	}

	// What follows the stated length is taken, unlike behind an archive: the superblock says where the file system ends,
	// so nothing that belongs to it can be missing, and mksquashfs itself pads to 4 KiB.
	garbage := make([]byte, 100_001)
	_, _ = rand.Read(garbage)
	for name, data := range map[string][]byte{
		"padding gone": image[:size], "garbage": append(bytes.Clone(image), garbage...),
		"garbage at once": append(bytes.Clone(image[:size]), garbage...), "second image": append(bytes.Clone(image), image...),
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := unpack("tree", data)
			require.NoError(t, err)
			script(t, "diff -r --no-dereference "+whole+" "+tree)
		})
	}
}
