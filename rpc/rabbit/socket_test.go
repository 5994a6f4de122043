package rabbit

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mute listens, accepts and says nothing.
func mute(t *testing.T) Host {
	t.Helper()
	listener := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns []net.Conn
		for {
			c, err := listener.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return Host{Name: "127.0.0.1", Port: listener.Addr().(*net.TCPAddr).Port, User: "u", Password: "s3cret"}
}

func TestSocketDeadlines(t *testing.T) {
	t.Parallel()
	s, err := dialSocket(t.Context(), mute(t).Address(), 300*time.Millisecond, 200*time.Millisecond)
	require.NoError(t, err)
	defer func() { _ = s.Close() }()
	raw, err := s.Conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		require.NoError(t, err)
		require.Equal(t, 200, ms)
	}))
	// What the library sets does not matter.
	require.NoError(t, s.SetDeadline(time.Now().Add(-time.Hour)))
	require.NoError(t, s.SetReadDeadline(time.Now().Add(-time.Hour)))
	require.NoError(t, s.SetWriteDeadline(time.Now().Add(-time.Hour)))

	start := time.Now()
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.InDelta(t, 300, time.Since(start).Milliseconds(), 250)

	require.NoError(t, s.establish(100*time.Millisecond))
	start = time.Now()
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.InDelta(t, 200, time.Since(start).Milliseconds(), 150)

	big := make([]byte, 1<<20)
	for err = nil; err == nil; { // until the buffers of both ends are full
		_, err = s.Write(big)
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Less(t, s.idle(), 5*time.Second)
}

func TestOpenGivesUpOnMuteBroker(t *testing.T) {
	t.Parallel()
	o := Defaults()
	h := mute(t)
	tm := timing{connect: 300 * time.Millisecond, request: time.Second, confirm: time.Second, close: time.Second}
	for _, withTLS := range []bool{false, true} {
		o.TLS.Enabled = withTLS
		start := time.Now()
		_, err := open(t.Context(), &o, h, tm, "test")
		require.Error(t, err)
		require.NotContains(t, err.Error(), "s3cret")
		require.Less(t, time.Since(start), 3*time.Second)
	}
}

func TestTransportWithoutBroker(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Hosts = []Host{mute(t)}
	tr, err := newTransport(o, timing{connect: 100 * time.Millisecond, request: time.Second, confirm: time.Second, close: time.Second})
	require.NoError(t, err)
	tr.Close() // never used
	tr.Close()
}
