package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// service is one daemon of the control plane.
type service struct {
	name string
	user string
	env  []string
	args []string
}

// Service is what Status tells of a daemon. PID is 0 for one that does not run.
type Service struct {
	Name string
	PID  int
}

// startService starts a daemon in a session of its own, which outlives this process. One that runs already is left alone.
func (p *Plane) startService(s service) error {
	if p.pid(s.name) != 0 {
		return nil
	}
	for _, dir := range []string{p.path("run"), p.path("log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(p.path("log", s.name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not bound to the caller's context: it is to go on when the caller has ended.
	cmd := p.chrootCommand(context.Background(), s.user, s.env, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() { // reaps it, if it ends before this process does; why it ended is in its log
		_ = cmd.Wait()
		close(ended)
	}()
	for !p.owns(pid) { // until it has changed its root
		select {
		case <-ended:
			text, readErr := os.ReadFile(log.Name())
			return errors.Join(fmt.Errorf("start %s: it ended at once: %s", s.name, tail(string(text), 800)), readErr)
		case <-time.After(2 * time.Millisecond):
		}
	}
	return os.WriteFile(p.pidFile(s.name), []byte(strconv.Itoa(pid)), 0o600)
}

func (p *Plane) startServices(services ...service) error {
	for _, s := range services {
		if err := p.startService(s); err != nil {
			return err
		}
	}
	return nil
}

func (p *Plane) pidFile(name string) string { return p.path("run", name+".pid") }

// pid of a running daemon, 0 when it does not run.
func (p *Plane) pid(name string) int {
	text, err := os.ReadFile(p.pidFile(name))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || !p.owns(pid) {
		return 0
	}
	return pid
}

// owns reports whether the process lives in our chroot. The name of its root would not tell: it is another one in another mount
// namespace, where `ip netns exec` puts the DHCP server.
func (p *Plane) owns(pid int) bool {
	ours, err := os.Stat(p.Root)
	if err != nil {
		return false
	}
	its, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid))
	return err == nil && os.SameFile(ours, its)
}

// processes of the chroot, whoever started them: daemons, their workers, and what they started through sudo.
func (p *Plane) processes() ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(filepath.Base(entry)); err == nil && p.owns(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Status lists the daemons that were started.
func (p *Plane) Status() ([]Service, error) {
	files, err := filepath.Glob(p.pidFile("*"))
	if err != nil {
		return nil, err
	}
	var services []Service
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".pid")
		services = append(services, Service{name, p.pid(name)})
	}
	return services, nil
}

// Running reports whether the control plane is up.
func (p *Plane) Running() bool { return p.mark("up") != "" && p.pid("nova-conductor") != 0 }

// stopServices asks daemons to end and waits for them; what is left after the deadline is killed, with its children.
func (p *Plane) stopServices(ctx context.Context, deadline time.Duration, names ...string) error {
	pids := map[string]int{}
	for _, name := range names {
		if pid := p.pid(name); pid != 0 {
			pids[name] = pid
			_ = unix.Kill(pid, unix.SIGTERM) // it may have ended by itself
		}
	}
	waitCtx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	for name, pid := range pids {
		_ = cloud.Poll(waitCtx, 50*time.Millisecond, name, func() (bool, error) { return !p.owns(pid), nil })
		_ = unix.Kill(-pid, unix.SIGKILL) // the session that it led
	}
	var errs []error
	for _, name := range names {
		if err := os.Remove(p.pidFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// killAll ends every process of the chroot. One that sits in the kernel is not waited for without end.
func (p *Plane) killAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	signal := unix.SIGTERM
	for round := 0; ; round++ {
		pids, err := p.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		if round == 20 {
			signal = unix.SIGKILL
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, signal) // gone is as good
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end processes %v: %w", pids, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// LogFile is where a service's output goes.
func (p *Plane) LogFile(service string) string { return p.path("log", service+".log") }

// patience bounds what a service may take to come up. It takes seconds on a machine that does nothing else.
const patience = 5 * time.Minute

// waitPort waits until the service listens. A daemon that ended meanwhile ends the wait, with the end of its log.
func (p *Plane) waitPort(ctx context.Context, name string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	err := cloud.Poll(ctx, 100*time.Millisecond, name+" at "+address, func() (bool, error) {
		if p.pid(name) == 0 {
			return false, fmt.Errorf("%s has ended", name)
		}
		connection, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		return true, connection.Close()
	})
	if err != nil {
		log, readErr := os.ReadFile(p.path("log", name+".log"))
		return errors.Join(fmt.Errorf("%w: %s", err, tail(string(log), 1500)), readErr)
	}
	return nil
}

// waitLine waits until the daemon's log, from the given size on, holds the text.
func (p *Plane) waitLine(ctx context.Context, name, text string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return cloud.Poll(ctx, 100*time.Millisecond, name+" to say "+text, func() (bool, error) {
		log, err := os.ReadFile(p.path("log", name+".log"))
		if err != nil {
			return false, err
		}
		if p.pid(name) == 0 {
			return false, fmt.Errorf("%s has ended: %s", name, tail(string(log), 1500))
		}
		return slices.Contains(strings.Split(string(log), "\n"), text), nil
	})
}
