//go:build functional

package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(dir string) (storage.Backend, error) { return New(dir) })
}

func TestNested(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	b, err := New(e.Dir)
	require.NoError(t, err)
	err = b.Create(t.Context(), storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, Nested: true, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}})
	require.ErrorIs(t, err, storage.ErrUnsupported)
}

// TestCrashWhileMounting: what a process killed between the steps leaves mounted is
// taken away by the next Mount, and no second loop device is made for the disk.
func TestCrashWhileMounting(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	b, err := New(e.Dir)
	require.NoError(t, err)
	r := storage.Root{InstanceID: "a", ImagePath: e.Image, SizeGB: 1, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}}
	require.NoError(t, b.Create(t.Context(), r))
	dir := b.pool.Path("a")
	for _, name := range []string{rootfsDir, lowerDir, diskDir} {
		require.NoError(t, mount.Point(filepath.Join(dir, name)))
	}
	require.NoError(t, ext4.Mount(filepath.Join(dir, diskFile), filepath.Join(dir, diskDir)))
	require.NoError(t, os.Mkdir(filepath.Join(dir, diskDir, "upper"), 0o700)) // without its owner yet
	require.NoError(t, mount.CloneIDMapped(e.Image, filepath.Join(dir, lowerDir), r.IDs))
	path, err := b.Mount(t.Context(), r)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o755, info.Mode())
	require.Equal(t, path+"\n", storagetest.Leftovers(t, e.Dir).Mounts, "one mount an instance")
	require.NoError(t, b.Delete(t.Context(), "a"))
}

// BenchmarkReady is the time from nothing to a mounted root disk of 10 GiB, and
// from there to nothing again.
func BenchmarkReady(b *testing.B) {
	e := storagetest.NewEnvironment(b)
	back, err := New(e.Dir)
	require.NoError(b, err)
	var create, mounted, deleted time.Duration
	for i := 0; b.Loop(); i++ {
		r := storage.Root{InstanceID: fmt.Sprintf("i%d", i), ImagePath: e.Image, SizeGB: 10, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}}
		start := time.Now()
		require.NoError(b, back.Create(b.Context(), r))
		create += time.Since(start)
		start = time.Now()
		_, err := back.Mount(b.Context(), r)
		require.NoError(b, err)
		mounted += time.Since(start)
		start = time.Now()
		require.NoError(b, back.Delete(b.Context(), r.InstanceID))
		deleted += time.Since(start)
	}
	n := float64(b.N)
	b.ReportMetric(float64(create.Milliseconds())/n, "create-ms")
	b.ReportMetric(float64(mounted.Milliseconds())/n, "mount-ms")
	b.ReportMetric(float64(deleted.Milliseconds())/n, "delete-ms")
}
