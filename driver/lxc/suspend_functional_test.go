//go:build functional

package lxc

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/functest"
)

const mebi = 1 << 20

// swap gives the host swap until the test ends, if it has none.
func swap(t *testing.T) {
	t.Helper()
	if hostMemory(t).Totalswap > 0 {
		return
	}
	file := filepath.Join(testDir(t), "swap")
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 96*mebi))                   // without holes
	require.NoError(t, errors.Join(err, f.Sync(), f.Close())) // a disk that is busy with it takes no swap
	out, err := exec.CommandContext(t.Context(), "mkswap", file).CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	out, err = exec.CommandContext(t.Context(), "swapon", file).CombinedOutput()
	functest.Need(t, err == nil, "swap, or a file system that can hold it: "+string(out))
	t.Cleanup(func() {
		out, err := exec.Command("swapoff", file).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
	})
}

func hostMemory(t *testing.T) unix.Sysinfo_t {
	t.Helper()
	var host unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&host))
	return host
}

// TestFunctionalSuspendGivesMemoryBack: what a guest holds in memory goes to the host's swap while it is suspended, and is there again
// when it goes on. A flavor without swap keeps no guest from that, and the guest's limit is as before.
func TestFunctionalSuspendGivesMemoryBack(t *testing.T) {
	d := newDriver(t)
	swap(t)
	const held = 32 * mebi
	spec := started(t, d, nil, func(s *driver.Spec) {
		if d.cgroups.layout == layoutV2 {
			s.Limits.SwapBytes = 0
		}
	})
	sum := run(t, d, spec.UUID, "mkdir -p /ram && mount -t tmpfs ram /ram && dd if=/dev/urandom of=/ram/data bs=1M count=32 2>/dev/null; md5sum /ram/data")
	memory := func() int64 { return d.cgroups.number("memory", payload(spec.Name), d.cgroups.memoryFile()) }
	before := memory()
	require.Greater(t, before, int64(held))

	// What a busy disk does not take in time stays in memory; asked again, more of it goes.
	require.Eventually(t, func() bool {
		return assert.NoError(t, d.Suspend(t.Context(), spec.UUID)) && memory() < before-held*3/4
	}, 2*time.Minute, 10*time.Millisecond, "it held %d bytes", before)
	require.Equal(t, driver.PowerStateSuspended, info(t, d, spec.UUID).PowerState)
	if d.cgroups.layout == layoutV2 {
		limit, err := os.ReadFile(d.cgroups.file(unified, payload(spec.Name), "memory.swap.max"))
		require.NoError(t, err)
		require.Equal(t, "0\n", string(limit))
	}

	require.NoError(t, d.Resume(t.Context(), spec.UUID))
	require.Equal(t, sum, run(t, d, spec.UUID, "md5sum /ram/data"))
	require.Greater(t, memory(), int64(held))
	require.NoError(t, d.Stop(t.Context(), spec.UUID, 0, 0))
}
