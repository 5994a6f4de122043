package storagetest

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// BenchmarkReady measures the time from nothing to a mounted root disk of 10 GiB, and from there to
// nothing again: the median and, for a machine that does other things too, the best.
func BenchmarkReady(b *testing.B, back storage.Backend, e Environment) {
	b.Helper()
	var ready, deleted []time.Duration
	for i := 0; b.Loop(); i++ {
		r := root(e, fmt.Sprintf("i%d", i), 0, 10)
		start := time.Now()
		require.NoError(b, back.Create(b.Context(), r))
		_, err := back.Mount(b.Context(), r)
		require.NoError(b, err)
		ready = append(ready, time.Since(start))
		start = time.Now()
		require.NoError(b, back.Delete(b.Context(), r.InstanceID))
		deleted = append(deleted, time.Since(start))
	}
	report(b, "ready", ready)
	report(b, "delete", deleted)
}

// BenchmarkDelete measures how long a deletion takes of a root disk with much in it: 700 MiB that are
// not written back yet, and files.
func BenchmarkDelete(b *testing.B, back storage.Backend, e Environment, files int) {
	b.Helper()
	var deleted []time.Duration
	chunk := make([]byte, 1<<20)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		r := root(e, fmt.Sprintf("d%d", i), 0, 10)
		require.NoError(b, back.Create(b.Context(), r))
		path, err := back.Mount(b.Context(), r)
		require.NoError(b, err)
		large, err := os.Create(filepath.Join(path, "etc/large"))
		require.NoError(b, err)
		for range 700 {
			_, err := large.Write(chunk)
			require.NoError(b, err)
		}
		require.NoError(b, large.Close())
		for n := range files {
			require.NoError(b, os.WriteFile(filepath.Join(path, "tmp", strconv.Itoa(n)), nil, 0o600))
		}
		b.StartTimer()
		start := time.Now()
		require.NoError(b, back.Delete(b.Context(), r.InstanceID))
		deleted = append(deleted, time.Since(start))
	}
	report(b, "delete", deleted)
}

// BenchmarkSecond measures the second root disk of an image of a size, and what it takes of the pool.
func BenchmarkSecond(b *testing.B, back storage.Backend, e Environment, megabytes int) {
	b.Helper()
	random := make([]byte, 1<<20)
	_, _ = rand.Read(random) // never fails
	for n := range megabytes {
		random[0] = byte(n)
		require.NoError(b, os.WriteFile(filepath.Join(e.Image, "home", strconv.Itoa(n)), random, 0o600))
	}
	first := root(e, "first", 0, 4)
	require.NoError(b, back.Create(b.Context(), first))
	defer func() { require.NoError(b, back.Delete(b.Context(), "first")) }()
	var ready []time.Duration
	taken := int64(0)
	for i := 0; b.Loop(); i++ {
		r := root(e, fmt.Sprintf("s%d", i), 1, 4)
		start := time.Now()
		require.NoError(b, back.Create(b.Context(), r))
		_, err := back.Mount(b.Context(), r)
		require.NoError(b, err)
		ready = append(ready, time.Since(start))
		b.StopTimer()
		taken = 0
		_ = filepath.WalkDir(filepath.Join(e.Dir, r.InstanceID), func(path string, d os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && d.Type().IsRegular() && unix.Lstat(path, &st) == nil && filepath.Ext(path) == ".img" {
				taken += st.Blocks * 512
			}
			return err
		})
		require.NoError(b, back.Delete(b.Context(), r.InstanceID))
		b.StartTimer()
	}
	report(b, "ready", ready)
	b.ReportMetric(float64(taken)/(1<<20), "file-MiB")
}

func report(b *testing.B, what string, times []time.Duration) {
	b.Helper()
	slices.Sort(times)
	milliseconds := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(milliseconds(times[len(times)/2]), what+"-ms")
	b.ReportMetric(milliseconds(times[0]), what+"-best-ms")
}
