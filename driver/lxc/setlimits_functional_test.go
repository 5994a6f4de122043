//go:build functional

package lxc

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

// TestFunctionalSetLimits changes the limits of a guest that runs: it is the same guest afterwards, and holds to them.
func TestFunctionalSetLimits(t *testing.T) {
	d := newDriver(t)
	s := started(t, d, nil)
	before, err := d.Info(t.Context(), s.UUID)
	require.NoError(t, err)
	read := func() string {
		file := "memory.limit_in_bytes"
		if d.cgroups.layout == layoutV2 {
			file = "memory.max"
		}
		b, err := os.ReadFile(d.cgroups.file("memory", payload(s.Name), file))
		require.NoError(t, err)
		return strings.TrimSpace(string(b))
	}
	l := s.Limits
	for _, bytes := range []int64{512 << 20, 96 << 20, 256 << 20} { // up and down
		l.MemoryBytes, l.CPUPeriodUS, l.CPUQuotaUS, l.PIDs = bytes, 100_000, 250_000, 777
		require.NoError(t, d.SetLimits(t.Context(), s.UUID, l))
		require.Equal(t, map[int64]string{512 << 20: "536870912", 96 << 20: "100663296", 256 << 20: "268435456"}[bytes], read())
	}
	l.CPUQuotaUS = 0
	require.NoError(t, d.SetLimits(t.Context(), s.UUID, l), "a quota can be taken away")
	after, err := d.Info(t.Context(), s.UUID)
	require.NoError(t, err)
	require.Equal(t, before.InitPID, after.InitPID)

	// More in use than allowed: the guest keeps what it has until it is started again.
	run(t, d, s.UUID, `setsid sh -c 'x=$(head -c 50000000 /dev/zero | tr "\0" a); sleep 1000; true' < /dev/null > /dev/null 2>&1 &
		while [ $(cat /proc/[0-9]*/statm | awk '{n += $2} END {print n}') -lt 12000 ]; do sleep 1; done`)
	l.MemoryBytes = 8 << 20
	require.ErrorIs(t, d.SetLimits(t.Context(), s.UUID, l), driver.ErrNeedsRestart)
	require.Equal(t, "268435456", read())
	require.NoError(t, d.Stop(t.Context(), s.UUID, 0, 0))
	l.MemoryBytes = 128 << 20
	require.NoError(t, d.SetLimits(t.Context(), s.UUID, l), "a guest that is off takes any")
	require.NoError(t, d.Start(t.Context(), s.UUID, nil))
	require.Equal(t, "134217728", read())
	require.ErrorIs(t, d.SetLimits(t.Context(), "unknown", l), driver.ErrNotFound)
}
