package lxc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// execRequest travels to forkexec in its environment: an argument list can be read by
// every user of the host.
type execRequest struct {
	LXCPath string
	Name    string
	LogFile string
	Args    []string
	Env     []string
}

// execVariable holds the request.
const execVariable = "COMPUTE_AGENT_EXEC"

const (
	// execGrace is how long output may still come after the command has ended, from
	// processes that it left behind.
	execGrace = 2 * time.Second
	// maxStatus bounds the reason that forkexec gives.
	maxStatus = 4096
)

// guestEnv is the environment of a command, before its own variables.
var guestEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "USER=root", "LANG=C.UTF-8", "container=lxc",
}

// Exec implements driver.Driver. A command that a signal ended returns 128 plus its
// number. When ctx ends, the command is killed and ErrTimeout returned.
// A paused guest is ErrNotRunning: attaching to it would wait for ever.
func (d *Driver) Exec(ctx context.Context, uuid string, cmd driver.Command) (int, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return -1, err
	}
	code, err := d.exec(ctx, rec, cmd)
	if err != nil {
		return -1, fmt.Errorf("execute in instance %s: %w", uuid, err)
	}
	return code, nil
}

func (d *Driver) exec(ctx context.Context, rec record, c driver.Command) (int, error) {
	if len(c.Args) == 0 {
		return -1, errors.New("no command is given")
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return -1, err
	}
	if g.init == 0 {
		return -1, driver.ErrNotRunning
	}
	if d.cgroups.frozen(payload(rec.Spec.Name)) {
		return -1, fmt.Errorf("%w: it is paused", driver.ErrNotRunning)
	}
	request, err := json.Marshal(execRequest{
		LXCPath: d.o.LXCPath, Name: rec.Spec.Name, LogFile: d.logFile(rec.Spec.Name),
		Args: c.Args, Env: append(append([]string{}, guestEnv...), c.Env...),
	})
	if err != nil {
		return -1, err
	}
	return d.forkExec(ctx, c, append(childEnv(rec), execVariable+"="+string(request)))
}

// forkExec runs the child and waits. The life pipe tells the child when the agent
// dies, so that no command outlives it unseen.
func (d *Driver) forkExec(ctx context.Context, c driver.Command, env []string) (int, error) {
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return -1, err
	}
	defer lifeW.Close() //nolint:errcheck // a pipe holds nothing back
	defer lifeR.Close() //nolint:errcheck // a pipe holds nothing back
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return -1, err
	}
	defer statusR.Close() //nolint:errcheck // a pipe holds nothing back
	defer statusW.Close() //nolint:errcheck // closed already if the child was started

	cmd := exec.CommandContext(ctx, d.o.Executable, commandExec)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.ExtraFiles = []*os.File{lifeR, statusW} // fdLife, fdStatus
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Terminal {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	// The command in the guest is in the child's process group unless it left it.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = execGrace
	if err := cmd.Start(); err != nil {
		return -1, err
	}
	_ = statusW.Close() // the child has its own
	err = cmd.Wait()
	if ctx.Err() != nil {
		return -1, fmt.Errorf("%w: %w", driver.ErrTimeout, ctx.Err())
	}
	if why := readStatus(statusR); why != "" {
		return -1, errors.New(why)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return -1, err
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return -1, fmt.Errorf("the helper ended with %s", cmd.ProcessState)
}

// readStatus returns what forkexec wrote, which a pipe holds in one piece. Something in
// the guest may still have the other end, so it does not wait for an end of file.
func readStatus(r *os.File) string {
	conn, err := r.SyscallConn()
	if err != nil {
		return ""
	}
	b := make([]byte, maxStatus)
	n := 0
	_ = conn.Read(func(fd uintptr) bool { // os.Pipe's ends do not block
		n, _ = unix.Read(int(fd), b)
		return true
	})
	return strings.TrimSpace(string(bytes.ToValidUTF8(b[:max(n, 0)], nil)))
}
