package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// directory of the chroot with Tempest's files.
const directory = "/var/lib/tempest-run"

// logFile is everything that Tempest wrote to its standard output, tracebacks included; tempest.log beside it has the requests.
func (j *judge) logFile() string { return filepath.Join(j.Plane.Root, directory, "output.log") }

// judge runs Tempest. Results come with an error, too, when they are not all.
func (j *judge) judge(ctx context.Context) (*results, error) {
	text, err := j.configure(ctx)
	if err != nil {
		return nil, err
	}
	host := filepath.Join(j.Plane.Root, directory)
	if err := os.MkdirAll(host, 0o755); err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, e := range excluded {
		fmt.Fprintf(&list, "# %s\n%s\n", e.reason, e.pattern)
	}
	for name, text := range map[string]string{"tempest.conf": text, "excluded": list.String()} {
		if err := os.WriteFile(filepath.Join(host, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(filepath.Join(host, ".stestr")); err != nil { // listing needs what running makes
		if out, err := j.Plane.Command(ctx, directory, "stestr", "init").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("stestr init: %w: %s", err, out)
		}
	}
	j.Plane.Say("asking Tempest for its tests")
	out, err := j.tempest(ctx, "--list-tests").Output()
	if err != nil {
		return nil, fmt.Errorf("list tests: %w: %s", err, stderr(err))
	}
	r := newResults(strings.Split(string(out), "\n"))
	if len(r.tests) == 0 {
		return nil, fmt.Errorf("no test matches %q", j.regex)
	}
	j.Plane.Say("%d tests; the log is %s", len(r.tests), j.logFile())
	return r, j.follow(ctx, r)
}

func (j *judge) tempest(ctx context.Context, args ...string) *exec.Cmd {
	line := append([]string{
		"tempest", "run", "--config-file", directory + "/tempest.conf", "--regex", j.regex, "--exclude-list", directory + "/excluded",
	}, args...)
	return j.Plane.Command(ctx, directory, line...)
}

func stderr(err error) string {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return ""
	}
	return string(exit.Stderr[max(0, len(exit.Stderr)-800):])
}

// follow runs the tests, keeps what is written, and tells of each test as it ends.
func (j *judge) follow(ctx context.Context, r *results) error {
	log, err := os.Create(j.logFile())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := j.tempest(ctx, "--concurrency", strconv.Itoa(j.concurrency))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the workers end with it
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second // for the tests to clean up
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start tempest: %w", err)
	}
	lines := bufio.NewScanner(io.TeeReader(out, log))
	lines.Buffer(nil, 16<<20) // a line of a traceback may carry a whole answer of an API
	for lines.Scan() {
		if o, ok := parse(lines.Text()); ok {
			r.add(o)
			j.Plane.Say("%d/%d %s", r.ended(), len(r.tests), o)
		}
	}
	if err := errors.Join(lines.Err(), ctx.Err()); err != nil {
		return errors.Join(err, cmd.Wait())
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && r.ended() > 0 {
		return nil // it says that something failed: so do the results
	}
	return err
}
