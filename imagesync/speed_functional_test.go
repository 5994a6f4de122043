//go:build functional

package imagesync

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// speedRounds is how often TestImportSpeed measures; 0: not at all.
var speedRounds, _ = strconv.Atoi(os.Getenv("COMPUTE_AGENT_SPEED_ROUNDS"))

// slowest is what an import may take, as a multiple of the same by curl, xz and tar.
const slowest = 1.2

// TestImportSpeed compares an import with `curl | xz -dc -T0 | tar -x`, both over HTTP from this machine and
// both done when the tree is there. They take turns, so that what else the machine does hits both.
func TestImportSpeed(t *testing.T) {
	if speedRounds == 0 {
		t.Skip("this test measures: set COMPUTE_AGENT_SPEED_ROUNDS")
	}
	needImage(t, debianImage)
	_, err := exec.LookPath("curl")
	functest.Need(t, err == nil, "curl")
	t.Run("blocks", func(t *testing.T) { compareSpeed(t, debianImage) }) // as xz -T0 makes them
	t.Run("one block", func(t *testing.T) {
		single := filepath.Join(t.TempDir(), "single.tar.xz")
		run(t, "xz -dc -T0 "+debianImage+" | xz -2 -T1 -c >"+single)
		compareSpeed(t, single)
	})
}

func compareSpeed(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	sum := sha512.Sum512(data)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }))
	defer server.Close()
	var ours, theirs, ourCPU, theirCPU []time.Duration
	for range speedRounds {
		s, err := Open(Options{Dir: t.TempDir()})
		require.NoError(t, err)
		cpu, began := cpuTime(t), time.Now()
		_, err = s.Sync(t.Context(), Request{
			ID: "image", Size: int64(len(data)), HashAlgo: "sha512", HashValue: hex.EncodeToString(sum[:]), DiskFormat: "raw", Source: httpSource(server.URL),
		})
		ours, ourCPU = append(ours, time.Since(began)), append(ourCPU, cpuTime(t)-cpu)
		require.NoError(t, err)
		require.NoError(t, s.Close())

		dir := t.TempDir()
		cpu, began = cpuTime(t), time.Now()
		run(t, "curl -sf "+server.URL+" | xz -dc -T0 | tar -C "+dir+" -xp --xattrs --xattrs-include='*' --numeric-owner")
		theirs, theirCPU = append(theirs, time.Since(began)), append(theirCPU, cpuTime(t)-cpu)
		run(t, "sync -f "+dir) // and remove nothing: ext4 is slow to make files where many were removed a moment ago
	}
	ratio := float64(median(ours)) / float64(median(theirs))
	t.Logf("%d MB: import %s (processor %s), curl | xz | tar %s (%s), ratio %.2f (%.2f); all: %s and %s", len(data)>>20,
		median(ours).Round(time.Millisecond), median(ourCPU).Round(time.Millisecond), median(theirs).Round(time.Millisecond), median(theirCPU).Round(time.Millisecond),
		ratio, float64(median(ourCPU))/float64(median(theirCPU)), rounded(ours), rounded(theirs))
	require.LessOrEqual(t, ratio, slowest)
}

// cpuTime is what this process and its children that have ended took of the processors: what else runs on the machine changes it little.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var sum int64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var usage unix.Rusage
		require.NoError(t, unix.Getrusage(who, &usage))
		sum += usage.Utime.Nano() + usage.Stime.Nano()
	}
	return time.Duration(sum)
}

// httpSource is an address.
type httpSource string

// Open implements Source.
func (h httpSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, string(h), nil)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}

func rounded(d []time.Duration) []time.Duration {
	var out []time.Duration
	for _, x := range d {
		out = append(out, x.Round(10*time.Millisecond))
	}
	return out
}
