package lxc

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// TestMemoryEvents: what the kernel writes to memory.events of cgroup v2 is told of once, and not at every change.
func TestMemoryEvents(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	file := filepath.Join(base, payload("g"), "memory.events")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	write := func(kills int) {
		t.Helper()
		require.NoError(t, os.WriteFile(file, []byte("max 1\noom_kill "+strconv.Itoa(kills)+"\n"), 0o600))
	}
	write(3)
	d := &Driver{cgroups: cgroups{layout: layoutV2, dirs: map[string]string{unified: base}}, subs: map[*watcher]bool{}}
	w, err := newWatcher(d, make(chan driver.Event))
	require.NoError(t, err)
	g := &watched{uuid: "u", name: "g"}
	w.guests["u"] = g
	t.Cleanup(func() {
		delete(w.guests, "u") // it has no monitor
		w.close()
	})
	w.watchOOM(t.Context(), g)
	require.True(t, g.oom.on)
	require.Equal(t, int64(3), g.oom.kills, "what was before is not told of")

	told := func() bool {
		events := make([]unix.EpollEvent, epollBatch)
		n, err := unix.EpollWait(w.epoll, events, 100)
		for errors.Is(err, unix.EINTR) { // the runtime's own signals interrupt it, however it was asked to restart
			n, err = unix.EpollWait(w.epoll, events, 100)
		}
		require.NoError(t, err)
		for _, e := range events[:n] {
			w.ready(t.Context(), int(e.Fd))
		}
		return !g.oom.due.IsZero()
	}
	require.False(t, told())
	for kills := 4; kills < 6; kills++ {
		before := time.Now()
		write(kills)
		require.True(t, told())
		due := g.oom.due
		require.False(t, due.Before(before.Add(oomDelay)), due)
		require.False(t, due.After(time.Now().Add(oomDelay)), due)
		write(kills)
		told()
		require.Equal(t, due, g.oom.due, "a guest that is short of memory all the time is looked at now and then")
		require.Equal(t, int64(1), w.newKills(t.Context(), g))
		require.True(t, g.oom.due.IsZero())
		told()
		g.oom.due = time.Time{} // truncated and written are two changes for a file that is no cgroup's
	}
	require.Zero(t, w.newKills(t.Context(), g))
	w.dropOOM(g)
	write(9)
	require.False(t, told())
}
