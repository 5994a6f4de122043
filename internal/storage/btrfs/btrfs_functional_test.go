//go:build functional

package btrfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/storagetest"
)

const mkfs = "/sbin/mkfs.btrfs"

// fileSystem mounts a btrfs of 8 GiB in a file at dir.
func fileSystem(t testing.TB, dir string) {
	t.Helper()
	_, err := os.Stat(mkfs)
	functest.Need(t, err == nil, mkfs+" (package btrfs-progs)")
	file := dir + ".img"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 8<<30))
	out, err := exec.Command(mkfs, "-q", file).CombinedOutput()
	require.NoError(t, err, string(out))
	device, err := loop.Attach(file)
	require.NoError(t, err)
	defer device.Close()
	require.NoError(t, mount.New("btrfs", dir, mount.Option{Key: "source", Value: device.Name()}))
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, mount.Detach(dir)) })
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Subject{
		Open:       func(dir string) (storage.Backend, error) { return New(dir) },
		FileSystem: fileSystem, SharedSpace: true, Full: unix.EDQUOT,
	})
}

func open(t testing.TB) (*Backend, storagetest.Environment) {
	t.Helper()
	e := storagetest.NewEnvironment(t)
	require.NoError(t, os.Mkdir(e.Dir, 0o755))
	fileSystem(t, e.Dir)
	b, err := New(e.Dir)
	require.NoError(t, err)
	return b, e
}

var ids = storage.IDRange{Base: 1 << 20, Size: 1 << 16}

func TestNeedsBtrfs(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	_, err := New(e.Dir)
	require.ErrorIs(t, err, storage.ErrUnsupported)
	require.ErrorContains(t, err, "is not on a btrfs")
}

// TestImages: an image is in the pool once, and goes when the store has it no more.
func TestImages(t *testing.T) {
	b, e := open(t)
	ctx := t.Context()
	for _, id := range []string{"a", "b"} {
		require.NoError(t, b.Create(ctx, storage.Root{InstanceID: id, ImagePath: e.Image, SizeGB: 1, IDs: ids, Nested: true}))
	}
	images := func() []os.DirEntry {
		entries, err := os.ReadDir(b.images)
		require.NoError(t, err)
		return entries
	}
	require.Len(t, images(), 2, "a subvolume and a note")
	require.NoError(t, b.prune(ctx))
	require.Len(t, images(), 2, "the store has it")
	require.NoError(t, os.Rename(e.Image, e.Image+".away"))
	require.NoError(t, b.prune(ctx))
	require.Empty(t, images())
	path, err := b.Mount(ctx, storage.Root{InstanceID: "a"})
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(path, "etc/hostname"), "root disks outlive their image")
	for _, id := range []string{"a", "b"} {
		require.NoError(t, b.Delete(ctx, id))
	}
}

// TestSubvolumesWithin: a root disk goes even if its guest has made subvolumes in it.
func TestSubvolumesWithin(t *testing.T) {
	b, e := open(t)
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: ids}
	require.NoError(t, b.Create(t.Context(), r))
	disk := b.disk("a")
	for _, path := range []string{"home/one", "home/one/two", "three"} {
		require.NoError(t, createSubvolume(filepath.Join(disk, path)))
	}
	require.NoError(t, b.Delete(t.Context(), "a"))
	trash, err := filepath.Glob(filepath.Join(e.Dir, ".trash/*"))
	require.NoError(t, err)
	require.Len(t, trash, 1)
	require.NoError(t, remove(trash[0]))
	require.NoDirExists(t, trash[0])
}

// TestCrash: what was cut off is wiped at the next start.
func TestCrash(t *testing.T) {
	b, e := open(t)
	require.NoError(t, createSubvolume(filepath.Join(b.images, ".new-x")))
	hidden := filepath.Join(e.Dir, ".new", "a", hiddenDir)
	require.NoError(t, os.MkdirAll(hidden, 0o700))
	require.NoError(t, createSubvolume(filepath.Join(hidden, diskDir)))
	b, err := New(e.Dir)
	require.NoError(t, err)
	require.NoDirExists(t, filepath.Join(b.images, ".new-x"))
	require.NoDirExists(t, filepath.Join(e.Dir, ".new", "a"))
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: ids}
	require.NoError(t, b.Create(t.Context(), r))
	devices, err := b.Devices(t.Context(), "a")
	require.NoError(t, err)
	require.Len(t, devices, 1)
	require.False(t, devices[0].Own)
	require.NoError(t, b.Delete(t.Context(), "a"))
}

func BenchmarkReady(b *testing.B) {
	back, e := open(b)
	storagetest.BenchmarkReady(b, back, e)
}

func BenchmarkDelete(b *testing.B) {
	back, e := open(b)
	storagetest.BenchmarkDelete(b, back, e, 100_000)
}
