//go:build functional

package diskimage

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/qcow2"
	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/internal/functest"
)

// TestQemuImages reads what qemu-img writes.
func TestQemuImages(t *testing.T) {
	needPrograms(t, "qemu-img", "qemu-io")
	work := t.TempDir()
	script(t, work, `head -c 3000000 /dev/urandom > disk; yes text | head -c 2000000 >> disk; truncate -s 40000512 disk
printf end | dd of=disk bs=1 seek=40000509 conv=notrunc status=none`)
	want, err := os.ReadFile(work + "/disk")
	require.NoError(t, err)
	for name, command := range map[string]string{
		"plain":          "qemu-img convert -O qcow2 disk image",
		"version 2":      "qemu-img convert -O qcow2 -o compat=0.10 disk image",
		"zlib":           "qemu-img convert -c -O qcow2 disk image",
		"zlib version 2": "qemu-img convert -c -O qcow2 -o compat=0.10 disk image",
		"zstd":           "qemu-img convert -c -O qcow2 -o compression_type=zstd disk image",
		"512":            "qemu-img convert -O qcow2 -o cluster_size=512 disk image",
		"512 zstd":       "qemu-img convert -c -O qcow2 -o cluster_size=512,compression_type=zstd disk image",
		"2M":             "qemu-img convert -O qcow2 -o cluster_size=2M disk image",
		"2M zlib":        "qemu-img convert -c -O qcow2 -o cluster_size=2M disk image",
		"preallocated":   "qemu-img convert -O qcow2 -o preallocation=metadata disk image",
		"falloc":         "qemu-img convert -O qcow2 -o preallocation=falloc disk image",
		"lazy refcounts": "qemu-img convert -O qcow2 -o lazy_refcounts=on,refcount_bits=1 disk image",
		"resized":        "qemu-img convert -O qcow2 disk image; qemu-img resize -q image 50M; qemu-img resize -q --shrink image 40000512",
		"snapshots": `qemu-img convert -O qcow2 disk image; qemu-img snapshot -c one image; qemu-io -c 'write -P 7 1M 1M' -c 'write -z 2M 64k' -c 'discard 3M 64k' image
qemu-img snapshot -c two image; cp image earlier; qemu-img snapshot -a one image; rm earlier`,
	} {
		t.Run(name, func(t *testing.T) {
			script(t, work, "rm -f image; "+command)
			i := openQCOW2(t, work+"/image")
			got, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		})
	}
	// Written by a guest: clusters of all kinds side by side.
	script(t, work, "rm -f image; qemu-img convert -c -O qcow2 disk image; qemu-io -c 'write -P 7 1000k 100k' -c 'write -z 2M 64k' -c 'write -z -u 1M 256k' -c 'discard 4M 128k' image; qemu-img convert -O raw image plain")
	want, err = os.ReadFile(work + "/plain")
	require.NoError(t, err)
	i := openQCOW2(t, work+"/image")
	got, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func openQCOW2(t testing.TB, path string) *qcow2.Image {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	require.NoError(t, err)
	i, err := qcow2.Open(t.Context(), f, info.Size())
	require.NoError(t, err)
	t.Cleanup(i.Close)
	return i
}

// TestQemuRefusals: what qemu-img can make and is not taken.
func TestQemuRefusals(t *testing.T) {
	needPrograms(t, "qemu-img")
	work := t.TempDir()
	script(t, work, "truncate -s 10M disk")
	for found, command := range map[string]string{
		"backing file":       "qemu-img create -q -f qcow2 -b disk -F raw image",
		"external data file": "qemu-img create -q -f qcow2 -o data_file=data image 10M",
		// LUKS instead of AES has qemu-img measure the processor first, which fails on one whose clock is coarse; see qcow2's TestHostile.
		"encrypted":   "qemu-img create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s image 10M",
		"extended L2": "qemu-img create -q -f qcow2 -o extended_l2=on image 10M",
	} {
		script(t, work, "rm -f image; "+command)
		f, err := os.Open(work + "/image")
		require.NoError(t, err)
		info, err := f.Stat()
		require.NoError(t, err)
		_, err = Copy(t.Context(), Image{File: f, Size: info.Size(), Format: QCOW2}, t.TempDir(), unpack.Limits{Entries: 1, Bytes: 1})
		require.NoError(t, f.Close())
		var bad *Error
		require.ErrorAs(t, err, &bad)
		require.Contains(t, bad.Found, found)
		require.NotEmpty(t, bad.Want)
	}
}

// BenchmarkImportDisk copies the root out of a Debian cloud image (tests/functional/controlplane makes it), without the download.
func BenchmarkImportDisk(b *testing.B) {
	file := filepath.Join(os.Getenv("COMPUTE_AGENT_TEST_IMAGES"), "debian-12-generic.qcow2")
	_, err := os.Stat(file)
	functest.Need(b, err == nil && os.Geteuid() == 0, "root and "+file)
	for name, prepare := range map[string]string{
		"qcow2-zlib":  "cp " + file + " image",
		"qcow2-zstd":  "qemu-img convert -c -O qcow2 -o compression_type=zstd " + file + " image",
		"qcow2-plain": "qemu-img convert -O qcow2 " + file + " image",
		"raw":         "qemu-img convert -O raw " + file + " image",
	} {
		work := b.TempDir()
		script(b, work, prepare)
		format := Raw
		if strings.HasPrefix(name, "qcow2") {
			format = QCOW2
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, stats := copyImage(b, work+"/image", format)
				b.SetBytes(stats.Bytes)
			}
		})
	}
}
