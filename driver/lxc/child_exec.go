package lxc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"

	lxc "github.com/lxc/go-lxc"
	"golang.org/x/sys/unix"
)

// execChild attaches to a guest, runs one command and leaves with its exit status.
func execChild() int {
	status := os.NewFile(fdStatus, "status")
	code, err := attach()
	if err != nil {
		_, _ = fmt.Fprintln(status, err) // an agent that has gone does not read it
		return exitFailed
	}
	return code
}

func attach() (int, error) {
	var r execRequest
	if err := json.Unmarshal([]byte(os.Getenv(execVariable)), &r); err != nil {
		return 0, fmt.Errorf("read request: %w", err)
	}
	// The command gets the three standard descriptors and no other.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return 0, fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	go dieWithAgent()
	// What is typed at a terminal is the command's, which is in this process group: caught, and not ignored, which it would inherit.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGTTOU)
	c, err := lxc.NewContainer(r.Name, r.LXCPath)
	if err != nil {
		return 0, fmt.Errorf("open container: %w", err)
	}
	if err := c.SetLogFile(r.LogFile); err != nil {
		return 0, fmt.Errorf("set log file: %w", err)
	}
	if err := c.SetLogLevel(lxc.ERROR); err != nil {
		return 0, fmt.Errorf("set log level: %w", err)
	}
	o := lxc.DefaultAttachOptions
	o.ClearEnv, o.Env = true, r.Env
	// Never o.Groups: go-lxc then clears every other flag (lxc-binding.c:go_lxc_attach_no_wait,
	// "attach_flags &= LXC_ATTACH_SETGROUPS"), and the command would run in the agent's cgroup
	// with all capabilities. Without it liblxc drops the supplementary groups.
	o.UID, o.GID = 0, 0
	o.StdinFd, o.StdoutFd, o.StderrFd = 0, 1, 2
	pid, err := c.RunCommandNoWait(r.Args, o)
	if err != nil {
		return 0, fmt.Errorf("attach to guest: %w", err)
	}
	return wait(pid)
}

// wait returns the exit status of the command, or 128 plus the signal that ended it.
func wait(pid int) (int, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for command: %w", err)
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
}

// dieWithAgent ends this process and the command, which is in its process group, when
// the agent has gone.
func dieWithAgent() {
	var b [1]byte
	if n, err := os.NewFile(fdLife, "life").Read(b[:]); n == 0 || err != nil {
		_ = unix.Kill(0, unix.SIGKILL)
	}
}
