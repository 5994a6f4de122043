package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the socket's name in [lxc] state_dir.
const SocketName = "agent.sock"

// maxSocketPath is the kernel's limit (sun_path) without the NUL at its end.
const maxSocketPath = 107

// dialTimeout bounds the wait for a process that listens but does not accept.
const dialTimeout = 5 * time.Second

// Listen makes the socket, mode 0600, in the place of one that a dead agent has left. The
// caller holds the lock of the agent's state, so nobody else listens there.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // guests pass through state_dir
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if conn, err := Dial(ctx, path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen on %s: another agent serves it", path)
	}
	// Bound beside its place and moved there, it is never seen with another mode.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	address, done, err := shortPath(fresh)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer done()
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if unixListener, ok := listener.(*net.UnixListener); ok {
		unixListener.SetUnlinkOnClose(false) // it has moved
	}
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), listener.Close(), os.Remove(fresh))
	}
	return &removing{Listener: listener, path: path}, nil
}

// removing takes the socket's name away with the listener.
type removing struct {
	net.Listener

	path string
}

// Close implements net.Listener.
func (l *removing) Close() error {
	err := os.Remove(l.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.Listener.Close())
}

// Dial connects to an agent; ErrNoAgent when there is none.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	address, done, err := shortPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w %s", ErrNoAgent, path)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	defer done()
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", address)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w %s", ErrNoAgent, path)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return conn, nil
}

// shortPath gives a name of a socket that the kernel takes, however long its path is.
func shortPath(path string) (address string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + filepath.Base(path), func() { _ = unix.Close(fd) }, nil
}

// peer is who is at the other end of a connection.
type peer struct {
	pid int32
	uid uint32
}

// peerOf asks the kernel.
func peerOf(conn net.Conn) (peer, error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return peer{}, fmt.Errorf("a connection of type %T has no credentials", conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return peer{}, err
	}
	if credErr != nil {
		return peer{}, credErr
	}
	return peer{pid: cred.Pid, uid: cred.Uid}, nil
}
