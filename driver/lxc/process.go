package lxc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// clockTicks is USER_HZ, which is 100 on every architecture that Linux user space sees.
const clockTicks = 100

// monitorTitle starts the command line of every container monitor
// (lxccontainer.c:do_lxcapi_start).
const monitorTitle = "[lxc monitor] "

// guest is what the kernel knows about a container: its monitor and the init
// below it. init is 0 while the monitor starts or restarts the guest.
type guest struct{ monitor, init int }

func (g guest) running() bool { return g.monitor != 0 }

// lookup finds a container's monitor by its cgroup and the init as the monitor's child.
// Asking the monitor itself would wait for a process that may hang.
// ErrExists: the name's group belongs to a container of another lxcpath.
func (d *Driver) lookup(name string) (guest, error) {
	pids, err := d.cgroups.procs(monitor(name))
	if err != nil {
		return guest{}, fmt.Errorf("look up %s: %w", name, err)
	}
	for _, pid := range pids {
		title := cmdline(pid)
		if title == d.title(name) {
			return guest{monitor: pid, init: d.initOf(name, pid)}, nil
		}
		if strings.HasPrefix(title, monitorTitle) {
			return guest{}, fmt.Errorf("look up %s: %q uses the name: %w", name, title, driver.ErrExists)
		}
	}
	return guest{}, nil
}

// title is the command line of a container's monitor.
func (d *Driver) title(name string) string { return monitorTitle + d.o.LXCPath + " " + name }

func cmdline(pid int) string {
	b, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b), "\x00 ")
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// initOf is the monitor's child that is number 1 of a pid namespace and has become the
// guest's own program: before that it is a copy of the monitor that sets the guest up.
func (d *Driver) initOf(name string, monitorPID int) int {
	task := filepath.Join("task", strconv.Itoa(monitorPID), "children")
	b, err := os.ReadFile(procFile(monitorPID, task))
	var candidates []int
	if errors.Is(err, fs.ErrNotExist) { // a kernel without CONFIG_PROC_CHILDREN
		candidates, _ = d.cgroups.procs(payload(name))
	}
	for f := range bytes.FieldsSeq(b) {
		if pid, err := strconv.Atoi(string(f)); err == nil {
			candidates = append(candidates, pid)
		}
	}
	for _, pid := range candidates {
		if status(pid, "PPid") == strconv.Itoa(monitorPID) && strings.HasSuffix(status(pid, "NSpid"), "\t1") && !sameProgram(pid, monitorPID) {
			return pid
		}
	}
	return 0
}

func sameProgram(a, b int) bool {
	x, err := os.Stat(procFile(a, "exe"))
	if err != nil {
		return true // it ends, or changes just now
	}
	y, err := os.Stat(procFile(b, "exe"))
	return err == nil && os.SameFile(x, y)
}

// status reads one field of /proc/<pid>/status, "" if there is none.
func status(pid int, field string) string {
	b, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// startTicks reads when a process was started, in clock ticks since the host's boot
// (proc_pid_stat(5), field 22).
func startTicks(pid int) (int64, error) {
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0, err
	}
	// The command in field 2 may hold blanks and brackets; count from its end.
	_, after, ok := bytes.Cut(b[max(bytes.LastIndexByte(b, ')'), 0):], []byte(" "))
	f := bytes.Fields(after)
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("stat of process %d is not understood", pid)
	}
	return strconv.ParseInt(string(f[19]), 10, 64)
}

// startedAt tells when a process was started.
func startedAt(pid int) (time.Time, error) {
	ticks, err := startTicks(pid)
	if err != nil {
		return time.Time{}, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, err
	}
	age := time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/clockTicks)
	return time.Now().Add(-age), nil
}

// handles tells whether a process has installed a handler for a signal or blocks it
// to read it later. The kernel drops any other signal sent to a namespace's init.
func handles(pid int, sig unix.Signal) bool {
	for _, field := range []string{"SigCgt", "SigBlk"} {
		mask, err := strconv.ParseUint(status(pid, field), 16, 64)
		if err == nil && mask&(1<<(uint(sig)-1)) != 0 {
			return true
		}
	}
	return false
}

// process is a handle of a process that no other can take over.
type process struct {
	pid int
	fd  int // pidfd
}

// openProcess returns a handle; check, called after it was opened, must confirm that
// the pid is still the process that was meant.
func openProcess(pid int, check func() bool) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: fd}
	if !check() {
		p.close()
		return nil, fmt.Errorf("open process %d: %w", pid, unix.ESRCH)
	}
	return p, nil
}

func (p *process) close() { _ = unix.Close(p.fd) }

func (p *process) signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send signal %d to process %d: %w", sig, p.pid, err)
	}
	return nil
}

// exited tells without waiting whether the process has ended.
func (p *process) exited() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	n, err := unix.Poll(fds, 0)
	for errors.Is(err, unix.EINTR) { // also a poll that does not wait gives way to a signal
		n, err = unix.Poll(fds, 0)
	}
	return err == nil && n > 0
}

// wait waits until the process has ended, reaped or not. ErrTimeout: ctx ended before.
func (p *process) wait(ctx context.Context) error {
	own, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	f := os.NewFile(uintptr(own), "pidfd") // in the runtime's poller: no thread waits
	defer f.Close()                        //nolint:errcheck // nothing was written
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = conn.Read(func(uintptr) bool { return p.exited() })
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", driver.ErrTimeout, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return nil
}

// alive tells whether a process is there and has not ended.
func alive(pid int) bool {
	s := status(pid, "State")
	return s != "" && s[0] != 'Z' && s[0] != 'X'
}

// withProcess calls do with a handle of a process, which check confirms to be the one that was meant. One that has gone needs nothing.
func withProcess(pid int, check func() bool, do func(*process) error) error {
	p, err := openProcess(pid, check)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.close()
	return do(p)
}

// awaitEnd waits until a process has ended. ErrTimeout: ctx ended before.
func awaitEnd(ctx context.Context, pid int, check func() bool) error {
	return withProcess(pid, check, func(p *process) error { return p.wait(ctx) })
}

// inGroup tells whether a process is in a cgroup of that name or below it, in any
// hierarchy: it may leave some, never all.
func inGroup(pid int, group string) bool {
	b, err := os.ReadFile(procFile(pid, "cgroup"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(strings.TrimSpace(line)+"/", "/"+group+"/") {
			return true
		}
	}
	return false
}

// namespaces are those that a guest must not share with the host.
var namespaces = []string{"cgroup", "ipc", "mnt", "net", "pid", "uts", "user"}

// sharedNamespaces names the host's namespaces that a process is in. One that
// cannot be read counts as shared.
func sharedNamespaces(pid int, privileged bool) []string {
	var shared []string
	for _, ns := range namespaces {
		if privileged && ns == "user" {
			continue
		}
		var hosts []string
		for _, host := range []string{"self", "1"} {
			if link, err := os.Readlink(filepath.Join("/proc", host, "ns", ns)); err == nil {
				hosts = append(hosts, link)
			}
		}
		if len(hosts) == 0 {
			continue // the kernel does not have this kind
		}
		link, err := os.Readlink(procFile(pid, filepath.Join("ns", ns)))
		if err != nil || slices.Contains(hosts, link) {
			shared = append(shared, ns)
		}
	}
	return shared
}

// waitFor polls a condition until it holds; ErrTimeout if ctx ends before.
func waitFor(ctx context.Context, step time.Duration, done func() bool) error {
	for !done() {
		if err := pause(ctx, step); err != nil {
			return fmt.Errorf("%w: %w", driver.ErrTimeout, err)
		}
	}
	return nil
}
