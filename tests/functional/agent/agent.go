// Package agent starts, stops and asks the compute agent under test.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// Agent is one agent with its files below a directory. It outlives this process unless it is stopped; another process finds it by
// its pid file.
type Agent struct {
	Dir    string // holds the configuration, the log and the state
	Binary string
	// Within runs what starts it, in another network namespace perhaps; nil: it is started as this process is.
	Within func(start func() error) error
	// User is who it runs as, without any privilege, and owns its files then; nil: who this process runs as.
	User *syscall.Credential

	mu     sync.Mutex    // guards the fields below
	ended  chan struct{} // closed once the process that this Agent started has ended; nil when it started none
	status error         // of that process, as exec.Cmd.Wait says
	began  int64         // where that process's part of the log begins
}

// New describes an agent with its files below dir, as controlplane.AgentConfig lays them out; it touches nothing.
func New(dir string) *Agent { return &Agent{Dir: dir, Binary: filepath.Join(dir, "compute-agent")} }

// LogFile is where everything goes that the agent writes.
func (a *Agent) LogFile() string { return filepath.Join(a.Dir, "agent.log") }

// StateDir is the agent's state_path.
func (a *Agent) StateDir() string { return filepath.Join(a.Dir, "state") }

func (a *Agent) configFile() string { return filepath.Join(a.Dir, "agent.conf") }

func (a *Agent) pidFile() string { return filepath.Join(a.Dir, "agent.pid") }

// Build compiles the agent of the module that this process runs in.
func (a *Agent) Build(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", a.Binary, "./cmd/compute-agent")
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(out)))
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w\n%s", err, text)
	}
	return nil
}

// Configure writes the agent's configuration file.
func (a *Agent) Configure(text string) error {
	if err := os.MkdirAll(a.StateDir(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(a.configFile(), []byte(text), 0o600); err != nil || a.User == nil {
		return err
	}
	return errors.Join(os.Chown(a.StateDir(), int(a.User.Uid), int(a.User.Gid)), os.Chown(a.configFile(), int(a.User.Uid), int(a.User.Gid)))
}

// Start starts the agent; it returns at once. One that runs is an error.
func (a *Agent) Start() error {
	if pid := a.PID(); pid != 0 {
		return fmt.Errorf("start the agent: it runs already, as process %d", pid)
	}
	log, err := os.OpenFile(a.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Stat()
	if err != nil {
		return err
	}
	// Not bound to a context: the agent is to go on when the caller has ended.
	cmd := exec.CommandContext(context.Background(), a.Binary, "--config-file", a.configFile())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: a.User}
	start := cmd.Start
	if a.Within != nil {
		start = func() error { return a.Within(cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	ended := make(chan struct{})
	a.mu.Lock()
	a.ended, a.began = ended, before.Size()
	a.mu.Unlock()
	go func() {
		err := cmd.Wait()
		a.mu.Lock()
		a.status = err
		a.mu.Unlock()
		close(ended)
	}()
	return os.WriteFile(a.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}

// Ended is closed when the agent that this Agent started last has ended; it is nil if it started none.
func (a *Agent) Ended() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// WaitServing waits until the agent says that it serves. One that ended instead is an error with its last words.
func (a *Agent) WaitServing(ctx context.Context) error {
	a.mu.Lock()
	began := a.began
	a.mu.Unlock()
	return cloud.Poll(ctx, 50*time.Millisecond, "the agent to serve", func() (bool, error) {
		text, _, err := a.Log(began)
		if err != nil {
			return false, err
		}
		if a.PID() == 0 {
			return false, fmt.Errorf("the agent ended: %s", text[max(0, len(text)-500):])
		}
		started := strings.LastIndex(text, "compute-agent starts")
		return started >= 0 && strings.Contains(text[started:], "msg=serving"), nil
	})
}

// PID is the agent's process, 0 when it does not run.
func (a *Agent) PID() int {
	text, err := os.ReadFile(a.pidFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return 0
	}
	// A process that this one started stays as a zombie until it is waited for: it has no program then.
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || strings.TrimSuffix(program, " (deleted)") != a.Binary {
		return 0
	}
	return pid
}

// Signal sends a signal to the agent and waits until it has ended. For an agent that this Agent started, the error is that of
// exec.Cmd.Wait: nil for exit status 0, *exec.ExitError for another.
func (a *Agent) Signal(ctx context.Context, signal syscall.Signal) error {
	pid := a.PID()
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	ended := a.Ended()
	if ended == nil {
		return cloud.Poll(ctx, 20*time.Millisecond, "the agent to end", func() (bool, error) { return a.PID() == 0, nil })
	}
	select {
	case <-ended:
	case <-ctx.Done():
		return fmt.Errorf("wait for the agent to end: %w", ctx.Err())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// Exec runs a command inside an instance, by UUID, and returns what it wrote to standard output.
func (a *Agent) Exec(ctx context.Context, instance string, command ...string) (string, error) {
	cmd := a.ExecCommand(ctx, instance, command...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %q in %s: %w: %s", command, instance, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// ExecCommand is what Exec runs, for the caller to connect.
func (a *Agent) ExecCommand(ctx context.Context, instance string, command ...string) *exec.Cmd {
	args := append([]string{"exec", "--config-file", a.configFile(), instance, "--"}, command...)
	return exec.CommandContext(ctx, a.Binary, args...)
}

// Command is a sub-command of the agent's program with this agent's configuration.
func (a *Agent) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, a.Binary, append(args, "--config-file", a.configFile())...)
}

// ResidentKB is the memory that the agent holds, in KiB.
func (a *Agent) ResidentKB() (int, error) { return ResidentKB(a.PID()) }

// ResidentKB is the memory that a process holds, in KiB.
func ResidentKB(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
		}
	}
	return 0, fmt.Errorf("read memory of process %d: no VmRSS", pid)
}

// CPUTime is the processor time that the agent has used.
func (a *Agent) CPUTime() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.PID()))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold spaces; utime and stime are the 12th and 13th field after it (proc(5)).
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const utime, stime, ticksPerSecond = 11, 12, 100
	if len(fields) <= stime {
		return 0, errors.New("read the agent's processor time: too few fields")
	}
	user, userErr := strconv.Atoi(fields[utime])
	system, systemErr := strconv.Atoi(fields[stime])
	return time.Duration(user+system) * time.Second / ticksPerSecond, errors.Join(userErr, systemErr)
}

// Log returns what the agent wrote from the offset on, and the offset of the end.
func (a *Agent) Log(from int64) (text string, end int64, err error) {
	all, err := os.ReadFile(a.LogFile())
	if errors.Is(err, os.ErrNotExist) {
		return "", 0, nil
	}
	if err != nil || from > int64(len(all)) {
		return "", int64(len(all)), err
	}
	return string(all[from:]), int64(len(all)), nil
}
