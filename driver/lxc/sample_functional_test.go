//go:build functional

package lxc

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// logBuffer is what was logged.
type logBuffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) contains(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.text.String(), s)
}

// TestFunctionalSample: what a guest does is counted, and one whose process is killed for want of memory is told of.
func TestFunctionalSample(t *testing.T) {
	log := &logBuffer{}
	logger := reqctx.Log(t.Context()).Logger
	out := logger.Out
	logger.SetOutput(log)
	t.Cleanup(func() { logger.SetOutput(out) })

	d := newDriver(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := d.Events(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range events {
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })

	s := started(t, d, nil, func(s *driver.Spec) { s.Limits.CPUQuotaUS = 20000 })
	before, err := d.Sample(t.Context(), s.UUID)
	require.NoError(t, err)
	require.Equal(t, s.Limits.MemoryBytes, before.MemoryLimit)
	require.Positive(t, before.Tasks)
	require.Positive(t, before.Usage.MemoryUsed)
	require.Zero(t, before.OOMKills)
	_, err = os.Stat(filepath.Join(d.cgroups.dirs[unified], payload(s.Name), "cpu.pressure"))
	if _, tree := d.cgroups.dirs[unified]; tree && err == nil {
		require.Len(t, before.Pressure, 3)
	}

	// A fifth of a CPU is the limit, and memory and swap together hold 192 MiB.
	output := run(t, d, s.UUID, "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/null bs=400M count=1; echo status $?")
	require.Contains(t, output, "status 137")
	after, err := d.Sample(t.Context(), s.UUID)
	require.NoError(t, err)
	require.Greater(t, after.Usage.CPUTime, before.Usage.CPUTime)
	require.Positive(t, after.Throttled)
	require.Equal(t, int64(1), after.OOMKills)
	for i, p := range after.Pressure {
		require.GreaterOrEqual(t, p.Total, before.Pressure[i].Total)
	}
	require.Eventually(t, func() bool {
		return log.contains("the kernel killed processes of a guest") && log.contains("name="+s.Name) && log.contains(s.UUID)
	}, time.Minute, 50*time.Millisecond)

	require.NoError(t, d.Stop(t.Context(), s.UUID, 0, 0))
	_, err = d.Sample(t.Context(), s.UUID)
	require.ErrorIs(t, err, driver.ErrNotRunning)
	_, err = d.Sample(t.Context(), "unknown")
	require.ErrorIs(t, err, driver.ErrNotFound)
}
