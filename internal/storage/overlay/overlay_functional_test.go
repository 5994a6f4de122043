//go:build functional

package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Subject{Open: func(dir string) (storage.Backend, error) { return New(t.Context(), dir, pool.FileOptions{}) }})
}

func TestConformanceWithProjectQuotas(t *testing.T) {
	storagetest.RunProjects(t, func(dir string, o pool.FileOptions) (storage.Backend, error) { return New(t.Context(), dir, o) })
}

func TestNested(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	b, err := New(t.Context(), e.Dir, pool.FileOptions{})
	require.NoError(t, err)
	err = b.Create(t.Context(), storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, Nested: true, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}})
	require.ErrorIs(t, err, storage.ErrUnsupported)
}

// TestCrashWhileMounting: what a process killed between the steps leaves mounted is
// taken away by the next Mount, and no second loop device is made for the disk.
func TestCrashWhileMounting(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	b, err := New(t.Context(), e.Dir, pool.FileOptions{})
	require.NoError(t, err)
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}}
	require.NoError(t, b.Create(t.Context(), r))
	dir := b.Pool.Path("a")
	for _, name := range []string{pool.RootfsDir, lowerDir, diskDir} {
		require.NoError(t, mount.Point(filepath.Join(dir, name)))
	}
	require.NoError(t, ext4.Mount(t.Context(), filepath.Join(dir, pool.DiskFile), filepath.Join(dir, diskDir), 1))
	require.NoError(t, os.Mkdir(filepath.Join(dir, diskDir, "upper"), 0o700)) // without its owner yet
	require.NoError(t, mount.CloneIDMapped(e.Image, filepath.Join(dir, lowerDir), r.IDs, false))
	path, err := b.Mount(t.Context(), r)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o755, info.Mode())
	require.Equal(t, path+"\n", storagetest.Leftovers(t, e.Dir).Mounts, "one mount an instance")
	require.NoError(t, b.Delete(t.Context(), "a"))
}

// TestCrashWhileGrowing: the record has the new size and the disk not yet; Mount completes it.
func TestCrashWhileGrowing(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	b, err := New(t.Context(), e.Dir, pool.FileOptions{})
	require.NoError(t, err)
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}}
	for name, cut := range map[string]func(){
		"after the record": func() {},
		"after the file":   func() { require.NoError(t, os.Truncate(b.File("a"), 2<<30)) },
	} {
		require.NoError(t, b.Create(t.Context(), r), name)
		larger := r
		larger.SizeGB = 2
		require.NoError(t, b.Pool.Set("a", larger), name)
		cut()
		path, err := b.Mount(t.Context(), r)
		require.NoError(t, err, name)
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(path, &st), name)
		require.InDelta(t, 2<<30, float64(st.Blocks)*float64(st.Bsize), 0.06*(2<<30), name)
		require.NoError(t, b.Delete(t.Context(), "a"), name)
	}
}

// TestInodes: a guest cannot make more files than its disk's size allows.
func TestInodes(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	b, err := New(t.Context(), e.Dir, pool.FileOptions{InodesPerGB: 2000})
	require.NoError(t, err)
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}}
	require.NoError(t, b.Create(t.Context(), r))
	path, err := b.Mount(t.Context(), r)
	require.NoError(t, err)
	files := 0
	for ; files < 5000; files++ {
		if err = os.WriteFile(filepath.Join(path, fmt.Sprintf("f%d", files)), nil, 0o600); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.InDelta(t, 2000, files, 100)
	require.NoError(t, b.Unmount(t.Context(), "a"))
	require.NoError(t, b.Grow(t.Context(), "a", 2))
	_, err = b.Mount(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(path, "more"), nil, 0o600), "they grow with the disk")
	require.NoError(t, b.Delete(t.Context(), "a"))
}

func bench(b *testing.B, o pool.FileOptions) (storage.Backend, storagetest.Environment) {
	b.Helper()
	e := storagetest.NewEnvironment(b)
	back, err := New(b.Context(), e.Dir, o)
	if o.ProjectQuota && errors.Is(err, storage.ErrUnsupported) {
		b.Skip(err)
	}
	require.NoError(b, err)
	return back, e
}

func BenchmarkReady(b *testing.B) {
	back, e := bench(b, pool.FileOptions{})
	storagetest.BenchmarkReady(b, back, e)
}

func BenchmarkReadyWithProjectQuota(b *testing.B) {
	back, e := bench(b, pool.FileOptions{ProjectQuota: true})
	storagetest.BenchmarkReady(b, back, e)
}

func BenchmarkDelete(b *testing.B) {
	back, e := bench(b, pool.FileOptions{})
	storagetest.BenchmarkDelete(b, back, e, 100_000)
}

func BenchmarkDeleteWithProjectQuota(b *testing.B) {
	back, e := bench(b, pool.FileOptions{ProjectQuota: true})
	storagetest.BenchmarkDelete(b, back, e, 100_000)
}

func BenchmarkSecond(b *testing.B) {
	for _, megabytes := range []int{1, 2048} {
		b.Run(fmt.Sprintf("%dMiB", megabytes), func(b *testing.B) {
			back, e := bench(b, pool.FileOptions{})
			storagetest.BenchmarkSecond(b, back, e, megabytes)
		})
	}
}
