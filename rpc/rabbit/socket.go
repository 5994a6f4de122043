package rabbit

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is the TCP connection below the library. Its deadlines are its own: what
// the library or TLS set is ignored, so that no read or write can last for ever.
type socket struct {
	net.Conn
	handshakeEnd time.Time     // reads fail then while established is false
	stall        time.Duration // longest time that one write may take
	established  atomic.Bool
	silence      atomic.Int64 // longest silence of the peer, a time.Duration; 0 is unlimited
	lastWrite    atomic.Int64 // unix nanoseconds
}

// dialSocket connects within timeout, which also bounds the handshakes to come.
func dialSocket(ctx context.Context, address string, timeout, heartbeat time.Duration) (*socket, error) {
	d := net.Dialer{Timeout: timeout, Control: func(_, _ string, c syscall.RawConn) error {
		return setUserTimeout(c, heartbeat)
	}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stall := heartbeat
	if stall <= 0 {
		stall = timeout
	}
	return &socket{Conn: conn, handshakeEnd: time.Now().Add(timeout), stall: stall}, nil
}

// setUserTimeout has the kernel give up on unacknowledged data
// (impl_rabbit.py:Connection.set_transport_socket_timeout).
func setUserTimeout(c syscall.RawConn, timeout time.Duration) error {
	if timeout <= 0 {
		return nil
	}
	var err error
	if ctlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	}); ctlErr != nil {
		return ctlErr
	}
	if err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	return nil
}

// establish ends the handshake: from now on the peer may be silent for two
// heartbeats, as py-amqp allows.
func (s *socket) establish(heartbeat time.Duration) error {
	s.silence.Store(int64(2 * heartbeat))
	s.established.Store(true)
	return s.Conn.SetReadDeadline(s.readDeadline()) // for the read under way
}

func (s *socket) readDeadline() time.Time {
	if !s.established.Load() {
		return s.handshakeEnd
	}
	if silence := time.Duration(s.silence.Load()); silence > 0 {
		return time.Now().Add(silence)
	}
	return time.Time{}
}

// Read implements net.Conn.
func (s *socket) Read(b []byte) (int, error) {
	if err := s.Conn.SetReadDeadline(s.readDeadline()); err != nil {
		return 0, err
	}
	return s.Conn.Read(b)
}

// Write implements net.Conn.
func (s *socket) Write(b []byte) (int, error) {
	now := time.Now()
	s.lastWrite.Store(now.UnixNano())
	if err := s.Conn.SetWriteDeadline(now.Add(s.stall)); err != nil {
		return 0, err
	}
	return s.Conn.Write(b)
}

// idle is the time since the last write.
func (s *socket) idle() time.Duration { return time.Since(time.Unix(0, s.lastWrite.Load())) }

// SetDeadline is ignored: deadlines are the socket's own.
func (s *socket) SetDeadline(time.Time) error { return nil }

// SetReadDeadline is ignored.
func (s *socket) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is ignored.
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// secure runs the TLS handshake if the options ask for it.
func (s *socket) secure(ctx context.Context, o TLS, serverName string) (net.Conn, error) {
	if !o.Enabled {
		return s, nil
	}
	config, err := o.config(serverName)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(s, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return conn, nil
}
