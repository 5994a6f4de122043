package main

import (
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnnounce: systemd hears that the agent serves, and that it lives only as long as it does.
func TestAnnounce(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
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
	for hear(time.Second) != "" { // what was on its way
	}
	require.Empty(t, hear(100*time.Millisecond))
	alive.Store(true)
	require.Equal(t, "WATCHDOG=1", hear(time.Minute))
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}
