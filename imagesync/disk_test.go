package imagesync

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/disktest"
)

func diskRequest(id, format string, data []byte) Request {
	r := request(id, data)
	r.DiskFormat = format
	return r
}

func TestDiskImages(t *testing.T) {
	t.Parallel()
	disk := disktest.GPT(disktest.Part{Kind: disktest.RootX86, Content: disktest.Root().Bytes})
	for name, r := range map[string]Request{
		"raw disk":         diskRequest("image", "raw", disk),
		"raw file system":  diskRequest("image", "raw", disktest.Root().Bytes),
		"qcow2":            diskRequest("image", "qcow2", disktest.QCOW2{}.Store(disk)),
		"qcow2 compressed": diskRequest("image", "qcow2", disktest.QCOW2{Compression: "zstd"}.Store(disk)),
		"nothing declared": diskRequest("image", "", disktest.QCOW2{Version: 2}.Store(disk)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			img, err := s.Sync(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, r.Size, img.Size)
			require.EqualValues(t, len("disk\n#!/bin/sh\n"), img.UnpackedSize)
			got, err := os.ReadFile(filepath.Join(img.Path, "etc/hostname"))
			require.NoError(t, err)
			require.Equal(t, "disk\n", string(got))
		})
	}
}

func TestDiskImagesRefused(t *testing.T) {
	t.Parallel()
	disk := disktest.Root().Bytes
	qcow2 := disktest.QCOW2{}.Store(disk)
	hostile := disktest.Root()
	hostile.InodeOf("etc/hostname")[0x7a] = 1
	for name, c := range map[string]struct {
		request     Request
		found, want string
	}{
		"qcow2 as raw":      {diskRequest("x", "raw", qcow2), `a qcow2 disk image with disk_format "raw"`, "disk_format qcow2"},
		"raw as qcow2":      {diskRequest("x", "qcow2", disk), `an ext4 file system with disk_format "qcow2"`, "a qcow2 disk image"},
		"tar as qcow2":      {diskRequest("x", "qcow2", plainTar(t, 10)), `tar with disk_format "qcow2"`, "a qcow2 disk image"},
		"text as qcow2":     {diskRequest("x", "qcow2", []byte("hello")), `content of no known format`, "a qcow2 disk image"},
		"XFS":               {diskRequest("x", "raw", disktest.GPT(disktest.Part{Kind: disktest.RootX86, Content: append([]byte("XFSB"), make([]byte, 128<<10-4)...)})), "xfs in partition 1", "tar archive"},
		"owner of no guest": {diskRequest("x", "raw", hostile.Bytes), "belongs to 0:65536", "tar archive"},
		"disk in gzip":      {diskRequest("x", "raw", gzipped(t, disk)), "an ext4 file system compressed with gzip", "tar archive"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			_, err := s.Sync(t.Context(), c.request)
			var bad *UnacceptableError
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Found, c.found)
			require.Contains(t, bad.Want, c.want)
			requireClean(t, s)
		})
	}
}

// TestDiskHashFirst: a disk that is not what Glance has recorded is not looked into.
func TestDiskHashFirst(t *testing.T) {
	t.Parallel()
	r := diskRequest("image", "raw", disktest.Root().Bytes)
	damaged := atomic.Int32{}
	r.Source.(*bytesSource).damage = func(_ int, p []byte) {
		damaged.Add(1)
		clear(p[5*disktest.Ext4Block : 20*disktest.Ext4Block]) // its inodes
	}
	s := openStore(t)
	_, err := s.Sync(t.Context(), r)
	require.ErrorIs(t, err, ErrHashMismatch)
	require.EqualValues(t, mismatchAttempts, damaged.Load())
	requireClean(t, s)
}

// TestCheckFree: what a file system says it takes must be free before it is copied; diskimage asks.
func TestCheckFree(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	free, err := s.free()
	require.NoError(t, err)
	require.NoError(t, s.checkFree(0))
	require.ErrorIs(t, s.checkFree(free+1<<40), unix.ENOSPC)
}

func TestSparseFile(t *testing.T) {
	t.Parallel()
	data := bytes.Join([][]byte{make([]byte, 1<<20), []byte("x"), make([]byte, 2<<20), bytes.Repeat([]byte("y"), 10_000), make([]byte, 5_000_001)}, nil)
	path := filepath.Join(t.TempDir(), "file")
	s := openStore(t)
	require.NoError(t, s.spool(io.MultiReader(bytes.NewReader(data[:777_777]), bytes.NewReader(data[777_777:])), path))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	require.Less(t, st.Blocks*512, int64(200_000))
}
