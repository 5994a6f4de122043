//go:build functional

package overlay

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
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
