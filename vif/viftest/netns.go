//go:build functional

package viftest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Environment variables: the first marks the inner process of Main, the second makes
// a missing need a failure instead of a skip.
const (
	innerVar    = "COMPUTE_AGENT_TEST_NETNS"
	requiredVar = "COMPUTE_AGENT_FUNCTIONAL"
)

// The process is known by its main thread: "the namespace of pid n" is that thread's.
// Keep goroutines that change their namespace off it.
func init() { runtime.LockOSThread() }

// Main runs the tests of a package in network and mount namespaces of their own, so
// that the host's devices are neither seen nor touched; call it from TestMain. All
// threads of the inner process are in the namespaces. Without root the tests run
// where they are, and Need skips those that plug.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv(innerVar) != "" {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare test namespaces:", err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec,noctx // the test binary itself
	cmd.Env = append(os.Environ(), innerVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "start tests in namespaces:", err)
		return 1
	}
	return 0
}

// enter makes the mounts match the namespaces: sysfs shows the devices of the
// network namespace that it was mounted in.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return nil
}

// Need skips a test that lacks root or one of the tools; with COMPUTE_AGENT_FUNCTIONAL=1 it fails.
func Need(t *testing.T, tools ...string) {
	t.Helper()
	missing := ""
	if os.Getenv(innerVar) == "" {
		missing = "root (to make network namespaces)"
	}
	for _, tool := range append([]string{"ip", "nsenter", "sleep"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			missing = "the program " + tool
		}
	}
	switch {
	case missing == "":
	case os.Getenv(requiredVar) == "1":
		t.Fatalf("needs %s", missing)
	default:
		t.Skipf("needs %s", missing)
	}
}

// Guest is an empty network namespace, like a container's.
type Guest struct {
	t   *testing.T
	cmd *exec.Cmd
}

// NewGuest makes a Guest that lives until Kill or the end of the test.
func NewGuest(t *testing.T) *Guest {
	t.Helper()
	cmd := exec.Command("sleep", "600") //nolint:noctx // killed below
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start guest: %v", err)
	}
	g := &Guest{t: t, cmd: cmd}
	t.Cleanup(g.Kill)
	return g
}

// Kill ends the guest; the kernel destroys its devices soon after.
func (g *Guest) Kill() {
	if g.cmd.ProcessState != nil {
		return
	}
	_ = g.cmd.Process.Kill() // it may have ended
	_ = g.cmd.Wait()         // killed
}

// Take moves a device of the host into the guest as eth0 with an address, as a
// container's start does.
func (g *Guest) Take(device, address string) {
	g.t.Helper()
	Command(g.t, "ip", "link", "set", "dev", device, "netns", g.pid(), "name", "eth0")
	if address != "" {
		g.Command("ip", "address", "add", address, "dev", "eth0")
	}
	g.Command("ip", "link", "set", "dev", "eth0", "up")
}

// Return moves a device of the guest back to the host, as liblxc does at a stop.
func (g *Guest) Return(device, name string) {
	g.t.Helper()
	g.Command("ip", "link", "set", "dev", device, "netns", strconv.Itoa(os.Getpid()), "name", name)
}

// Command runs a program in the guest's network namespace and returns its output.
func (g *Guest) Command(args ...string) string {
	g.t.Helper()
	return Command(g.t, append([]string{"nsenter", "--net=/proc/" + g.pid() + "/ns/net", "--"}, args...)...)
}

// Run calls fn on a thread that is in the guest's network namespace: sockets that
// it opens are the guest's.
func (g *Guest) Run(fn func() error) error {
	result := make(chan error, 1) // one answer
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- func() error {
			fd, err := unix.Open("/proc/"+g.pid()+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open guest's namespace: %w", err)
			}
			defer unix.Close(fd) //nolint:errcheck // read only
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter guest's namespace: %w", err)
			}
			return fn()
		}()
	}()
	return <-result
}

func (g *Guest) pid() string { return strconv.Itoa(g.cmd.Process.Pid) }

// Command runs a program and returns its output; the test fails if it does. It may
// be called while the test is cleaned up.
func Command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}
