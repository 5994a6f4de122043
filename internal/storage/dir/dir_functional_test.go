//go:build functional

package dir

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Subject{Open: func(dir string) (storage.Backend, error) { return New(dir, pool.FileOptions{}) }})
}

func TestConformanceWithProjectQuotas(t *testing.T) {
	storagetest.RunProjects(t, func(dir string, o pool.FileOptions) (storage.Backend, error) { return New(dir, o) })
}

func bench(b *testing.B, o pool.FileOptions) (storage.Backend, storagetest.Environment) {
	b.Helper()
	e := storagetest.NewEnvironment(b)
	back, err := New(e.Dir, o)
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
