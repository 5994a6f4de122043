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

// patience is more than anything here takes, on a busy machine too.
const patience = time.Minute

// requireBetween requires that a time is d after one between two others.
func requireBetween(t *testing.T, got, begin, end time.Time, d time.Duration) {
	t.Helper()
	require.False(t, got.Before(begin.Add(d)), "%s early", begin.Add(d).Sub(got))
	require.False(t, got.After(end.Add(d)), "%s late", got.Sub(end.Add(d)))
}

func TestSocketDeadlines(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	s, err := dialSocket(t.Context(), mute(t).Address(), patience, 200*time.Millisecond)
	require.NoError(t, err)
	defer func() { _ = s.Close() }()
	requireBetween(t, s.readDeadline(), begin, time.Now(), patience)
	raw, err := s.Conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		require.NoError(t, err)
		require.Equal(t, 200, ms)
		// From here on it is not to be the kernel that gives up.
		require.NoError(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience.Milliseconds())))
	}))
	// What the library sets does not matter.
	require.NoError(t, s.SetDeadline(time.Now().Add(-time.Hour)))
	require.NoError(t, s.SetReadDeadline(time.Now().Add(-time.Hour)))
	require.NoError(t, s.SetWriteDeadline(time.Now().Add(-time.Hour)))

	s.handshakeEnd = time.Now().Add(100 * time.Millisecond)
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.False(t, time.Now().Before(s.handshakeEnd))

	require.NoError(t, s.establish(100*time.Millisecond))
	begin = time.Now()
	requireBetween(t, s.readDeadline(), begin, time.Now(), 200*time.Millisecond)
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.GreaterOrEqual(t, time.Since(begin), 200*time.Millisecond)

	big := make([]byte, 1<<20)
	for err = nil; err == nil; { // until the buffers of both ends are full
		_, err = s.Write(big)
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Less(t, s.idle(), patience)
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
		require.Less(t, time.Since(start), patience)
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
