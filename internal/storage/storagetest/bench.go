package storagetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// BenchmarkReady measures the time from nothing to a mounted root disk of 10 GiB, and from there to
// nothing again.
func BenchmarkReady(b *testing.B, back storage.Backend, e Environment) {
	b.Helper()
	var create, mounted, deleted time.Duration
	for i := 0; b.Loop(); i++ {
		r := root(e, fmt.Sprintf("i%d", i), 0, 10)
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
	milliseconds := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(milliseconds(create), "create-ms")
	b.ReportMetric(milliseconds(mounted), "mount-ms")
	b.ReportMetric(milliseconds(create+mounted), "ready-ms")
	b.ReportMetric(milliseconds(deleted), "delete-ms")
}
