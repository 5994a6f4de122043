//go:build functional

package dir

import (
	"testing"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Subject{Open: func(dir string) (storage.Backend, error) { return New(dir, 0) }})
}

func bench(b *testing.B) (storage.Backend, storagetest.Environment) {
	b.Helper()
	e := storagetest.NewEnvironment(b)
	back, err := New(e.Dir, 0)
	if err != nil {
		b.Fatal(err)
	}
	return back, e
}

func BenchmarkReady(b *testing.B) {
	back, e := bench(b)
	storagetest.BenchmarkReady(b, back, e)
}

func BenchmarkDelete(b *testing.B) {
	back, e := bench(b)
	storagetest.BenchmarkDelete(b, back, e, 100_000)
}
