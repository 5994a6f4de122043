package lxc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// consoleTimeout bounds the opening of a console: a monitor that hangs does not answer.
const consoleTimeout = 10 * time.Second

var _ driver.ConsoleOpener = (*Driver)(nil)

// OpenConsole implements driver.ConsoleOpener. The monitor makes a second terminal, copies between it
// and the guest's console, and keeps it as long as the connection on which it was asked for is open
// (liblxc terminal.c:lxc_terminal_allocate). A child holds that connection: it ends with the agent.
func (d *Driver) OpenConsole(ctx context.Context, uuid string) (io.ReadWriteCloser, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return nil, err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return nil, err
	}
	if g.init == 0 {
		return nil, fmt.Errorf("open console of instance %s: %w", uuid, driver.ErrNotRunning)
	}
	c, err := d.forkConsole(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("open console of instance %s: %w", uuid, err)
	}
	return c, nil
}

// openConsole is one end of a guest's console, held open by a child.
type openConsole struct {
	*os.File

	life  *os.File // closing it ends the child
	child *exec.Cmd
	once  sync.Once
}

// Read ends with io.EOF when the monitor has closed its end: a terminal says EIO then.
func (c *openConsole) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// Close gives the console back; when it returns, another may open it.
func (c *openConsole) Close() error {
	err := os.ErrClosed
	c.once.Do(func() {
		err = c.File.Close()
		_ = c.life.Close()
		_ = c.child.Wait() // it was told to leave, or the guest has gone
	})
	return err
}

// forkConsole runs the child and takes the terminal that it passes.
func (d *Driver) forkConsole(ctx context.Context, rec record) (_ *openConsole, err error) {
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer lifeR.Close() //nolint:errcheck // a pipe holds nothing back
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = lifeW.Close()
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "console"), os.NewFile(uintptr(pair[1]), "console") //nolint:gosec // descriptors are not negative
	defer ours.Close()                                                                               //nolint:errcheck // a socket holds nothing back
	defer theirs.Close()                                                                             //nolint:errcheck // closed already if the child was started

	cmd := exec.Command(d.o.Executable, commandConsole, d.o.LXCPath, rec.Spec.Name, d.logFile(rec.Spec.Name)) //nolint:noctx,gosec // it ends with the life pipe
	cmd.Env = childEnv(rec)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{lifeR, theirs} // fdLife, fdStatus
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = lifeW.Close()
		return nil, err
	}
	_ = theirs.Close() // the child has its own
	terminal, err := receiveTerminal(ctx, ours)
	if err != nil {
		_ = lifeW.Close()
		_ = cmd.Process.Kill() // it may wait for a monitor that hangs
		_ = cmd.Wait()
		return nil, err
	}
	return &openConsole{File: terminal, life: lifeW, child: cmd}, nil
}

// receiveTerminal waits for the descriptor that the child sends, or for its reason why not.
func receiveTerminal(ctx context.Context, from *os.File) (*os.File, error) {
	conn, err := net.FileConn(from)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // a socket holds nothing back
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("unexpected socket %T", conn)
	}
	deadline := time.Now().Add(consoleTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := socket.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	text, oob := make([]byte, maxStatus), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := socket.ReadMsgUnix(text, oob)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%w: the container's monitor does not answer", driver.ErrTimeout)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case oobn == 0 && n == 0:
		return nil, errors.New("the helper ended without an answer")
	case oobn == 0:
		// liblxc says no more than that it did not get one; a guest that runs has one.
		return nil, fmt.Errorf("%w: the console is in use: %s", driver.ErrExists, text[:n])
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("read descriptor: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("read descriptor: %w", err)
	}
	unix.CloseOnExec(fds[0])
	// Read and write with Go's poller, so that Close ends them.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "console of a guest"), nil //nolint:gosec // descriptors are not negative
}
