package lxc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// typedAtOnce is how many bytes are written to a terminal that says that it takes some: a write of
// more than it has room for would wait for the guest.
const typedAtOnce = 64

var _ driver.ConsoleOpener = (*Driver)(nil)

// OpenConsole implements driver.ConsoleOpener. What the guest writes is read from the console log, which the
// monitor writes at once; what is typed goes to the monitor's own end of the console, which the kernel
// shares (pidfd_getfd(2)).
//
// liblxc's way (lxc_container.console_getfd) is not taken: with it the monitor waits for a reader that is slow,
// and a guest that reboots itself is stopped instead, because lxc_terminal_mainloop_add_peer fails on the
// state that the earlier console left (seen with liblxc 5.0.2).
func (d *Driver) OpenConsole(ctx context.Context, uuid string) (io.ReadWriteCloser, error) {
	rec, g, err := d.runs(ctx, uuid, "open console of")
	if err != nil {
		return nil, err
	}
	name := rec.Spec.Name
	monitor, err := openProcess(g.monitor, func() bool { return inGroup(g.monitor, monitor(name)) })
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("open console of instance %s: %w", uuid, driver.ErrNotRunning)
	}
	if err != nil {
		return nil, err
	}
	c := &openConsole{d: d, name: name, monitor: monitor, terminal: -1, changes: -1, wake: -1}
	if err := c.follow(); err != nil {
		c.release()
		return nil, fmt.Errorf("open console of instance %s: %w", uuid, err)
	}
	return c, nil
}

// openConsole is a connection with a guest's console. It lasts as long as the guest's monitor, so over a
// reboot inside.
type openConsole struct {
	d       *Driver
	name    string
	monitor *process
	changes int // inotify descriptor over the directory of the log
	wake    int // eventfd; readable once the console is closed

	// Read's own.
	log  *os.File // nil: there is none yet
	over bool     // the monitor has ended; what it wrote is still read

	// Write's own.
	terminal int // the monitor's end of the console, -1 before the first write
	init     int // whose console that is

	mu     sync.Mutex // guards the fields below
	closed bool
	users  sync.WaitGroup // calls of Read and Write; added to under mu
}

// follow starts at the end of the log.
func (c *openConsole) follow() (err error) {
	if c.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if c.changes, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return err
	}
	file := c.d.consoleFile(c.name)
	if _, err := unix.InotifyAddWatch(c.changes, filepath.Dir(file), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("watch console log: %w", err)
	}
	c.log, err = os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = c.log.Seek(0, io.SeekEnd)
	return err
}

// Read implements io.Reader.
func (c *openConsole) Read(p []byte) (int, error) {
	if !c.enter() {
		return 0, os.ErrClosed
	}
	defer c.users.Done()
	for {
		n, err := c.readLog(p)
		if n > 0 || err != nil {
			return n, err
		}
		if c.over {
			return 0, io.EOF
		}
		ready, err := poll(c.wake, unix.POLLIN, c.changes, unix.POLLIN, c.monitor.fd, unix.POLLIN)
		switch {
		case err != nil:
			return 0, err
		case ready[0]:
			return 0, os.ErrClosed
		case ready[1]:
			var events [4096]byte
			_, _ = unix.Read(c.changes, events[:]) // they say no more than that there is something
		}
		c.over = ready[2]
	}
}

// readLog reads on in the log, and in the next one when the monitor has begun another.
func (c *openConsole) readLog(p []byte) (int, error) {
	for range 2 {
		if c.log != nil {
			if n, err := c.log.Read(p); n > 0 || err != nil && !errors.Is(err, io.EOF) {
				return n, err
			}
		}
		next, err := c.next()
		if next == nil || err != nil {
			return 0, err
		}
		if c.log != nil {
			// Written between our last look and the change.
			if n, err := c.log.Read(p); n > 0 || err != nil && !errors.Is(err, io.EOF) {
				_ = next.Close()
				return n, err
			}
			_ = c.log.Close()
		}
		c.log = next
	}
	return 0, nil
}

// next opens the log if it is another file than the one that is read; nil: it is not.
func (c *openConsole) next() (*os.File, error) {
	f, err := os.Open(c.d.consoleFile(c.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // between two logs
	}
	if err != nil || c.log == nil {
		return f, err
	}
	now, err := f.Stat()
	if err == nil {
		var old os.FileInfo
		if old, err = c.log.Stat(); err == nil && !os.SameFile(old, now) {
			return f, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// Write implements io.Writer. It waits for a guest that does not read, until Close.
func (c *openConsole) Write(p []byte) (int, error) {
	if !c.enter() {
		return 0, os.ErrClosed
	}
	defer c.users.Done()
	written := 0
	for written < len(p) {
		if err := c.find(); err != nil {
			return written, err
		}
		ready, err := poll(c.wake, unix.POLLIN, c.terminal, unix.POLLOUT, c.monitor.fd, unix.POLLIN)
		switch {
		case err != nil:
			return written, err
		case ready[0]:
			return written, os.ErrClosed
		case ready[2]:
			return written, io.ErrClosedPipe
		}
		n, err := unix.Write(c.terminal, p[written:min(len(p), written+typedAtOnce)])
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) { // somebody else may have typed meanwhile
			return written, fmt.Errorf("type at console: %w", err)
		}
		written += max(n, 0)
	}
	return written, nil
}

// find makes sure that terminal is the console of the guest's present run.
func (c *openConsole) find() error {
	if c.terminal >= 0 && alive(c.init) {
		return nil
	}
	c.drop()
	g, err := c.d.settled(context.Background(), c.name) // bounded by itself
	if err != nil {
		return err
	}
	if g.init == 0 || g.monitor != c.monitor.pid {
		return io.ErrClosedPipe
	}
	if c.terminal, err = consoleOf(c.monitor, g.init); err != nil {
		return fmt.Errorf("find console: %w", err)
	}
	c.init = g.init
	return nil
}

func (c *openConsole) drop() {
	if c.terminal >= 0 {
		_ = unix.Close(c.terminal)
		c.terminal = -1
	}
}

// consoleOf returns a descriptor of the monitor's end of a guest's console: the terminal whose other end
// is the guest's /dev/console. The monitor has others while somebody uses lxc-console.
func consoleOf(monitor *process, initPID int) (int, error) {
	entries, err := os.ReadDir(procFile(monitor.pid, "fd"))
	if err != nil {
		return -1, err
	}
	var want unix.Stat_t
	if err := unix.Lstat(procFile(initPID, "root/dev/console"), &want); err != nil {
		return -1, err
	}
	for _, e := range entries {
		link, err := os.Readlink(procFile(monitor.pid, filepath.Join("fd", e.Name())))
		number, numErr := strconv.Atoi(e.Name())
		if err != nil || numErr != nil || !strings.HasSuffix(link, "ptmx") {
			continue
		}
		fd, err := unix.PidfdGetfd(monitor.fd, number, 0)
		if err != nil {
			return -1, fmt.Errorf("share the monitor's console: %w", err)
		}
		if peerIs(fd, want) {
			return fd, nil
		}
		_ = unix.Close(fd)
	}
	return -1, errors.New("the container's monitor has no terminal whose other end is the guest's /dev/console")
}

// peerIs tells whether the other end of a terminal is a certain file.
func peerIs(terminal int, want unix.Stat_t) bool {
	// O_NOCTTY: the agent may lead a session, and wants no guest's console as its controlling terminal.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(terminal), unix.TIOCGPTPEER, unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return false
	}
	defer unix.Close(int(peer)) //nolint:errcheck // nothing was written
	var st unix.Stat_t
	return unix.Fstat(int(peer), &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino && st.Rdev == want.Rdev
}

// poll waits until one of the descriptors is ready for what is asked of it, an error of its own included.
func poll(fdsAndEvents ...int) ([]bool, error) { return pollWithin(-1, fdsAndEvents...) }

// pollWithin is poll with a time-out, after which none is ready; negative: none.
func pollWithin(limit time.Duration, fdsAndEvents ...int) ([]bool, error) {
	ms := -1
	if limit >= 0 {
		ms = int(limit.Milliseconds())
	}
	fds := make([]unix.PollFd, len(fdsAndEvents)/2)
	for i := range fds {
		fds[i] = unix.PollFd{Fd: int32(fdsAndEvents[2*i]), Events: int16(fdsAndEvents[2*i+1])} //nolint:gosec // small numbers
	}
	for {
		_, err := unix.Poll(fds, ms)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ready := make([]bool, len(fds))
		for i := range fds {
			ready[i] = fds[i].Revents != 0
		}
		return ready, nil
	}
}

// enter tells that a call may use the descriptors; it then has to call users.Done.
func (c *openConsole) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.users.Add(1)
	return true
}

// Close ends the calls that wait.
func (c *openConsole) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return os.ErrClosed
	}
	c.closed = true
	c.mu.Unlock()
	_, err := unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	c.users.Wait()
	c.release()
	return err
}

func (c *openConsole) release() {
	c.drop()
	c.monitor.close()
	for _, fd := range []int{c.changes, c.wake} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if c.log != nil {
		_ = c.log.Close()
	}
}
