package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// socketPath is where a socket can be made: the kernel takes no long paths, and a test's own directory may have one.
func socketPath(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if len(path) < len(unix.RawSockaddrUnix{}.Path) {
		return path
	}
	dir, err := os.MkdirTemp("/tmp", "compute-agent") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, name)
}

// TestAnnounce: systemd hears that the agent serves, and that it lives only as long as it does.
func TestAnnounce(t *testing.T) {
	socket := socketPath(t, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	require.NoError(t, err)
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	hear := func(within time.Duration) string {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(within)))
		text := make([]byte, 100)
		n, _ := conn.Read(text) // nothing within that time is an answer too
		return string(text[:n])
	}
	var alive atomic.Bool
	alive.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- announce(ctx, nil, alive.Load) }()
	require.Equal(t, "READY=1\nSTATUS=serving", hear(time.Minute))
	require.Equal(t, "WATCHDOG=1", hear(time.Minute))
	alive.Store(false)
	for n := 0; n < 100 && hear(time.Second) != ""; n++ { // what was on its way
	}
	require.Empty(t, hear(100*time.Millisecond))
	alive.Store(true)
	require.Equal(t, "WATCHDOG=1", hear(time.Minute))
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}
