//go:build functional

package viftest

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Send transfers as many bytes from one guest to another and returns the rate in kB/s.
func Send(t *testing.T, from, to *Guest, address string, bytes int) float64 {
	t.Helper()
	var listener net.Listener
	require.NoError(t, to.Run(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address+":0")
		return err
	}))
	defer listener.Close() //nolint:errcheck // nobody connects any more
	took := make(chan time.Duration, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			close(took)
			return
		}
		began := time.Now()
		_, _ = io.Copy(io.Discard, conn)
		took <- time.Since(began)
	}()
	var conn net.Conn
	require.NoError(t, from.Run(func() (err error) {
		conn, err = (&net.Dialer{Timeout: 30 * time.Second}).DialContext(t.Context(), "tcp", listener.Addr().String())
		return err
	}))
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err := conn.Write(make([]byte, bytes))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	rate := float64(bytes) / 1000 / (<-took).Seconds()
	t.Logf("%d kB at %.0f kB/s", bytes/1000, rate)
	return rate
}

// RequireRate requires that transfers keep to a rate in kB/s: none is faster, and not all are slower, as whatever else the machine does
// makes one.
func RequireRate(t *testing.T, want float64, from, to *Guest, address string, bytes int) {
	t.Helper()
	const deviation = 0.25
	best := 0.0
	for try := 0; try < 3 && best < want*(1-deviation); try++ {
		best = max(best, Send(t, from, to, address, bytes))
	}
	require.InEpsilon(t, want, best, deviation, "to %s", address)
}

// RequireFast requires that one of several transfers is faster than a rate in kB/s.
func RequireFast(t *testing.T, than float64, from, to *Guest, address string, bytes int) {
	t.Helper()
	best := 0.0
	for try := 0; try < 3 && best <= than; try++ {
		best = max(best, Send(t, from, to, address, bytes))
	}
	require.Greater(t, best, than, "to %s", address)
}
