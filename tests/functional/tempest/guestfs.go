package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// lxcfsMount is where the agent looks for lxcfs.
const lxcfsMount = "/var/lib/lxcfs"

// timeOption of lxcfs: without it a guest whose limit is CPU time is shown all processors of the host.
const timeOption = "--enable-cfs"

// guestFS is the lxcfs that this program started, or one that ran already and is left alone: Tempest reads the number of processors and
// the time since boot in the guest's /proc.
type guestFS struct{ pidFile string }

// mountGuestFS starts lxcfs, unless it is mounted. It goes on when this program ends.
func mountGuestFS(ctx context.Context, plane *controlplane.Plane) (*guestFS, error) {
	g := &guestFS{pidFile: filepath.Join(plane.Base, "lxcfs.pid")}
	mounted := func() bool {
		_, err := os.Stat(filepath.Join(lxcfsMount, "proc", "uptime"))
		return err == nil
	}
	if mounted() {
		return g, countsTime()
	}
	if err := os.MkdirAll(lxcfsMount, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(plane.Base, "log", "lxcfs.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "lxcfs", "-f", timeOption, "-p", g.pidFile+".lock", lxcfsMount)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start lxcfs: %w", err)
	}
	ended := make(chan error, 1) // so that the waiter ends, whoever listens
	go func() { ended <- cmd.Wait() }()
	if err := os.WriteFile(g.pidFile, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return g, cloud.Poll(ctx, 50*time.Millisecond, "lxcfs", func() (bool, error) {
		select {
		case err := <-ended:
			return false, fmt.Errorf("lxcfs has ended (%w), see %s", errors.Join(err), log.Name())
		default:
			return mounted(), nil
		}
	})
}

// countsTime is an error if lxcfs runs, as the distribution's service does after a reboot, without what Tempest needs.
func countsTime() error {
	commands, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	running := false
	for _, path := range commands {
		if name, err := os.ReadFile(path); err != nil || string(name) != "lxcfs\n" { // or it has ended
			continue
		}
		running = true
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && slices.Contains(strings.Split(string(line), "\x00"), timeOption) {
			return nil
		}
	}
	if !running { // it is outside of this process namespace
		return nil
	}
	return fmt.Errorf("lxcfs runs without %s, so guests do not see how many processors they have: stop it, or start it with that", timeOption)
}

// unmount ends the lxcfs that mountGuestFS started.
func (g *guestFS) unmount(ctx context.Context) error {
	if g == nil {
		return nil
	}
	text, err := os.ReadFile(g.pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return err
	}
	if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(program) == "lxcfs" {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := cloud.Poll(ctx, 50*time.Millisecond, "lxcfs to end", func() (bool, error) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return err != nil || string(text) != "lxcfs\n", nil
		}); err != nil {
			return err
		}
	}
	// It unmounts itself; a mount that a guest of another namespace holds does not matter.
	if err := unix.Unmount(lxcfsMount, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return os.Remove(g.pidFile)
}
