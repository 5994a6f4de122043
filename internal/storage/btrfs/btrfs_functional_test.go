//go:build functional

package btrfs

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
		Open:       func(dir string) (storage.Backend, error) { return New(dir, 0) },
		FileSystem: fileSystem,
	})
}

func open(t testing.TB) (*Backend, storagetest.Environment) {
	t.Helper()
	e := storagetest.NewEnvironment(t)
	require.NoError(t, os.Mkdir(e.Dir, 0o755))
	fileSystem(t, e.Dir)
	b, err := New(e.Dir, 0)
	require.NoError(t, err)
	return b, e
}

var ids = storage.IDRange{Base: 1 << 20, Size: 1 << 16}

func TestNeedsBtrfs(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	_, err := New(e.Dir, 0)
	require.ErrorIs(t, err, storage.ErrUnsupported)
	require.ErrorContains(t, err, "is not on a btrfs")
}

// TestImages: an image is in the pool once, and goes when the store has it no more.
func TestImages(t *testing.T) {
	b, e := open(t)
	ctx := t.Context()
	sizes := map[string]int{"a": 2, "b": 2, "c": 1, "d": 3, "e": 0, "f": 0}
	for _, id := range slices.Sorted(maps.Keys(sizes)) {
		require.NoError(t, b.Create(ctx, storage.Root{InstanceID: id, ImagePath: e.Image, SizeGB: sizes[id], IDs: ids, Nested: true}))
	}
	images := func() []os.DirEntry {
		entries, err := os.ReadDir(b.images)
		require.NoError(t, err)
		return entries
	}
	require.Len(t, images(), 5, "a file for each size, a subvolume and a note")
	require.NoError(t, b.prune(ctx))
	require.Len(t, images(), 5, "the store has it")
	require.NoError(t, os.Rename(e.Image, e.Image+".away"))
	require.NoError(t, b.prune(ctx))
	require.Empty(t, images())
	for id := range sizes {
		path, err := b.Mount(ctx, storage.Root{InstanceID: id})
		require.NoError(t, err)
		require.FileExists(t, filepath.Join(path, "etc/hostname"), "root disks outlive their image")
		require.NoDirExists(t, filepath.Join(path, "lost+found"), "the image has none")
		devices, err := b.Devices(ctx, id)
		require.NoError(t, err)
		require.Len(t, devices, 1)
		require.Equal(t, sizes[id] > 0, devices[0].Own)
	}
	for id := range sizes {
		require.NoError(t, b.Delete(ctx, id))
	}
}

// TestImageFetchedAgain: of what was made of an image nothing is used for root disks of the one that has its place, while those that were made stay.
func TestImageFetchedAgain(t *testing.T) {
	b, e := open(t)
	ctx := t.Context()
	content := func(id string, sizeGB int) string {
		r := storage.Root{InstanceID: id, ImagePath: e.Image, SizeGB: sizeGB, IDs: ids}
		require.NoError(t, b.Create(ctx, r))
		path, err := b.Mount(ctx, r)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(path, "content"))
		require.NoError(t, err)
		return string(got)
	}
	file := filepath.Join(e.Image, "content")
	require.NoError(t, os.WriteFile(file, []byte("damaged"), 0o600))
	require.Equal(t, "damaged", content("a", 1))
	require.Equal(t, "damaged", content("b", 0))

	away := e.Image + ".away"
	require.NoError(t, os.Rename(e.Image, away))
	require.NoError(t, os.Mkdir(e.Image, 0o755))
	require.NoError(t, os.WriteFile(file, []byte("whole"), 0o600))
	require.Equal(t, "whole", content("c", 2), "not from the smaller file either")
	require.Equal(t, "whole", content("d", 1))
	require.Equal(t, "whole", content("e", 0))
	require.Equal(t, "damaged", content("a", 1))
	require.Equal(t, "damaged", content("b", 0))

	require.NoError(t, os.WriteFile(filepath.Join(b.images, key(e.Image)+noteSuffix), []byte(e.Image), 0o600)) // an older agent's
	require.NoError(t, os.WriteFile(file, []byte("later"), 0o600))
	require.Equal(t, "whole", content("f", 1))
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		require.NoError(t, b.Delete(ctx, id))
	}
}

// TestShared: a root disk and a copy of one take no room for what they share, and what is written to one
// is in no other.
func TestShared(t *testing.T) {
	b, e := open(t)
	ctx := t.Context()
	content := make([]byte, 64<<20)
	_, _ = rand.Read(content)
	require.NoError(t, os.WriteFile(filepath.Join(e.Image, "content"), content, 0o600))
	used := func() uint64 {
		require.NoError(t, exec.CommandContext(ctx, "sync", "-f", e.Dir).Run())
		u, err := b.Usage(ctx)
		require.NoError(t, err)
		return u.Total - u.Free
	}
	create := func(id string, sizeGB int) storage.Root {
		r := storage.Root{InstanceID: id, ImagePath: e.Image, SizeGB: sizeGB, IDs: ids}
		require.NoError(t, b.Create(ctx, r))
		return r
	}
	create("a", 1)
	before := used()
	for i, sizeGB := range []int{1, 1, 2, 2, 3} {
		create(fmt.Sprintf("b%d", i), sizeGB)
	}
	_, err := b.Mount(ctx, storage.Root{InstanceID: "a"})
	require.NoError(t, err)
	require.NoError(t, b.Copy(ctx, "a", storage.Root{InstanceID: "a.snapshot"}))
	require.Less(t, used(), before+32<<20, "six of 64 MiB")
	two, err := b.Mount(ctx, storage.Root{InstanceID: "a.snapshot"})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(two, "content"), content[:1<<20], 0o600))
	for _, id := range []string{"b0", "b4"} {
		path, err := b.Mount(ctx, storage.Root{InstanceID: id})
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(path, "content"))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content, got))
	}
	list, err := b.List(ctx)
	require.NoError(t, err)
	for _, id := range list {
		require.NoError(t, b.Delete(ctx, id))
	}
}

// TestInodes: a guest cannot make more files than its disk's size allows.
func TestInodes(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	require.NoError(t, os.Mkdir(e.Dir, 0o755))
	fileSystem(t, e.Dir)
	b, err := New(e.Dir, 2000)
	require.NoError(t, err)
	require.NoError(t, b.Create(t.Context(), storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: ids}))
	path, err := b.Mount(t.Context(), storage.Root{InstanceID: "a"})
	require.NoError(t, err)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	require.InDelta(t, 2000, st.Files, 200)
	require.NoError(t, b.Delete(t.Context(), "a"))
}

// TestSubvolumesWithin: a root disk goes even if its guest has made subvolumes in it.
func TestSubvolumesWithin(t *testing.T) {
	b, e := open(t)
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, IDs: ids}
	require.NoError(t, b.Create(t.Context(), r))
	disk := b.Pool.Path("a", hiddenDir, diskDir)
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
	b, err := New(e.Dir, 0)
	require.NoError(t, err)
	require.NoDirExists(t, filepath.Join(b.images, ".new-x"))
	require.NoDirExists(t, filepath.Join(e.Dir, ".new", "a"))
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: ids}
	require.NoError(t, b.Create(t.Context(), r))
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
