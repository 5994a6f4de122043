//go:build functional

package lxc

import (
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestFunctionalFootprint measures starts and memory, and holds them to generous
// bounds, since machines that run tests are busy.
func TestFunctionalFootprint(t *testing.T) {
	guests := 10
	if n, err := strconv.Atoi(os.Getenv("COMPUTE_AGENT_GUESTS")); err == nil {
		guests = n
	}
	d := newDriver(t)
	events := d.Events(t.Context())
	spec, rootfs := newSpec(t)
	var starts, stops []time.Duration
	for n := range guests {
		s := spec // they share a root file system, which busybox does not mind
		s.UUID, s.Name = s.UUID+"-"+strconv.Itoa(n), s.Name+"-"+strconv.Itoa(n)
		require.NoError(t, d.Create(t.Context(), s, rootfs))
		begin := time.Now()
		require.NoError(t, d.Start(t.Context(), s.UUID, nil))
		starts = append(starts, time.Since(begin))
		<-events
	}
	g, err := d.lookup(spec.Name + "-0")
	require.NoError(t, err)
	t.Logf("agent: %s, %s; a monitor: %s, %s", status(os.Getpid(), "VmRSS"), status(os.Getpid(), "Threads"),
		status(g.monitor, "VmRSS"), status(g.monitor, "RssAnon"))
	rss, err := strconv.Atoi(strings.TrimSuffix(status(os.Getpid(), "VmRSS"), " kB"))
	require.NoError(t, err)
	race := raceDetector()
	require.True(t, race || rss < 40<<10)
	for n := range guests {
		begin := time.Now()
		require.NoError(t, d.Stop(t.Context(), spec.UUID+"-"+strconv.Itoa(n), 0, 0))
		stops = append(stops, time.Since(begin))
	}
	slices.Sort(starts)
	slices.Sort(stops)
	t.Logf("start: min %s, median %s, max %s; forced stop: median %s", starts[0], starts[guests/2], starts[guests-1], stops[guests/2])
	require.True(t, race || starts[0] < 500*time.Millisecond)
}

// raceDetector tells whether this binary carries it; it multiplies memory
// and lets every process sleep a second at its end.
func raceDetector() bool {
	build, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
