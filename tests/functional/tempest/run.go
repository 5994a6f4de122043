package main

import (
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

// listFile of it names the tests to run.
const listFile = "list"

// logFile is everything that Tempest wrote to its standard output, tracebacks included; tempest.log beside it has the requests.
func (j *judge) logFile() string { return j.file("output.log") }

// file is the path of a file of Tempest's, as seen from outside of the chroot.
func (j *judge) file(name string) string { return filepath.Join(j.Plane.Root, directory, name) }

// judge runs Tempest. Results come with an error, too, when they are not all.
func (j *judge) judge(ctx context.Context) (r *results, err error) {
	text, err := j.configure(ctx)
	if err != nil {
		return nil, err
	}
	// Nova makes a network only for a project that may use none.
	if err := j.share(ctx, false); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.share(context.WithoutCancel(ctx), true)) }()
	if err := os.MkdirAll(j.file(""), 0o755); err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, e := range excluded {
		fmt.Fprintf(&list, "# %s\n%s\n", e.reason, e.pattern)
	}
	for name, text := range map[string]string{"tempest.conf": text, "excluded": list.String()} {
		if err := os.WriteFile(j.file(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(j.file(".stestr")); err != nil { // listing needs what running makes
		if out, err := j.Plane.Command(ctx, directory, "stestr", "init").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("stestr init: %w: %s", err, out)
		}
	}
	j.Plane.Say("asking Tempest for its tests")
	out, err := j.tempest(ctx, "--regex", j.regex, "--exclude-list", directory+"/excluded", "--list-tests").Output()
	if err != nil {
		return nil, fmt.Errorf("list tests: %w: %s", err, stderr(err))
	}
	r = newResults(strings.Split(string(out), "\n"))
	if len(r.tests) == 0 {
		return nil, fmt.Errorf("no test matches %q", j.regex)
	}
	j.Plane.Say("%d tests; the log is %s", len(r.tests), j.logFile())
	log, err := j.openLog(r)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	left := r.left()
	if len(left) == 0 {
		return r, nil
	}
	if err := os.WriteFile(j.file(listFile), []byte(strings.Join(left, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(log, runOf+j.source); err != nil {
		return nil, err
	}
	return r, j.follow(ctx, r, log)
}

// openLog is the log for this run: an empty one, or the one of the earlier runs that this run goes on with.
func (j *judge) openLog(r *results) (*os.File, error) {
	if !j.goOn {
		return os.Create(j.logFile())
	}
	log, err := os.OpenFile(j.logFile(), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := r.keep(log); err != nil {
		return nil, errors.Join(fmt.Errorf("read the results of earlier runs: %w", err), log.Close())
	}
	for at, n := range r.earlier {
		j.Plane.Say("%d tests passed earlier: %s", n, at)
	}
	return log, nil
}

// source is the commit that is tested, as git tells it.
func source(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output()
	if err != nil {
		return unknownCommit
	}
	return strings.TrimSpace(string(out))
}

func (j *judge) tempest(ctx context.Context, args ...string) *exec.Cmd {
	return j.Plane.Command(ctx, directory, append([]string{"tempest", "run", "--config-file", directory + "/tempest.conf"}, args...)...)
}

func stderr(err error) string {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return ""
	}
	return string(exit.Stderr[max(0, len(exit.Stderr)-800):])
}

// follow runs the tests, keeps what is written, and tells of each test as it ends.
func (j *judge) follow(ctx context.Context, r *results, log io.Writer) error {
	cmd := j.tempest(ctx, "--load-list", directory+"/"+listFile, "--concurrency", strconv.Itoa(j.concurrency))
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
	lines := linesOf(io.TeeReader(out, log))
	ended := r.ended()
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
	if errors.As(err, &exit) && r.ended() > ended {
		return nil // it says that something failed: so do the results
	}
	return err
}
