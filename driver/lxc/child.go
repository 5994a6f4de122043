package lxc

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	lxc "github.com/lxc/go-lxc"
	"golang.org/x/sys/unix"
)

// Hidden sub-commands of the agent's binary, see ChildMain.
const (
	commandStart = "forkstart"
	commandExec  = "forkexec"
	commandWrite = "forkwrite"
)

// Exit codes of the children. Those of forkexec from 0 to 255 are the command's
// own, so its failures are told apart by a byte on the status pipe.
const (
	exitUsage  = 2
	exitFailed = 1
)

// File descriptors that forkexec gets from the agent beyond the standard three.
const (
	fdLife   = 3 // read end; its end means that the agent has gone or gives up
	fdStatus = 4 // write end; one line tells why the command could not be run
)

// childNoFile is the soft limit of open files that a guest's init starts with.
// The Go runtime raises its own to the hard limit, which a guest shall not inherit
// (select(2) users break above 1024, and old daemons close every possible descriptor).
const childNoFile = 1024

// ChildMain runs the hidden sub-commands in which liblxc may fork. The agent's main
// calls it before anything else, so that this process is as small and as quiet as a
// Go process can be: liblxc forks the monitor from it. args is os.Args without the
// program name. When handled is false, the process is an ordinary agent.
//
//	forkstart LXCPATH NAME LOGFILE
//	forkexec, with its request in the environment
//	forkwrite CGROUP-FILE VALUE
func ChildMain(args []string) (handled bool, exitCode int) {
	if len(args) == 0 {
		return false, 0
	}
	switch args[0] {
	case commandStart:
		return true, startChild(args[1:])
	case commandExec:
		return true, execChild()
	case commandWrite:
		return true, writeChild(args[1:])
	}
	return false, 0
}

// startChild starts a container and leaves once it runs or has failed; the
// monitor is a daemon of its own by then.
func startChild(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: forkstart LXCPATH NAME LOGFILE")
		return exitUsage
	}
	if err := start(args[0], args[1], args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return 0
}

// start: NewContainer reads LXCPATH/NAME/config by itself; loading it again would double every list key.
func start(lxcPath, name, logFile string) error {
	// Descriptors that the agent leaked without CLOEXEC would stay open as long as the guest runs.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	unix.Umask(0o022)
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("change directory: %w", err)
	}
	var nofile syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &nofile); err == nil && nofile.Cur > childNoFile {
		nofile.Cur = childNoFile
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &nofile); err != nil {
			return fmt.Errorf("lower open files limit: %w", err)
		}
	}
	c, err := lxc.NewContainer(name, lxcPath)
	if err != nil {
		return fmt.Errorf("open container: %w", err)
	}
	defer c.Release() //nolint:errcheck // the process ends here
	if err := c.SetLogFile(logFile); err != nil {
		return fmt.Errorf("set log file: %w", err)
	}
	if err := c.SetLogLevel(lxc.WARN); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	if !c.Defined() {
		return fmt.Errorf("read configuration: %s is missing or wrong", c.ConfigFileName())
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return nil
}
