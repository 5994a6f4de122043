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

func BenchmarkReady(b *testing.B) {
	e := storagetest.NewEnvironment(b)
	back, err := New(e.Dir, 0)
	if err != nil {
		b.Fatal(err)
	}
	storagetest.BenchmarkReady(b, back, e)
}
