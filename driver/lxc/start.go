package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

// startTimeout bounds a start for callers whose context has no deadline.
const startTimeout = 60 * time.Second

// childPath is where liblxc looks for newuidmap, newgidmap and apparmor_parser.
const childPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxErrorLines bounds what a failed start reports of liblxc's log.
const maxErrorLines = 6

var (
	deviceForm = regexp.MustCompile(`^[0-9A-Za-z_.-]{1,15}$`)
	macForm    = regexp.MustCompile(`^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$`)
)

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, uuid string, nics []driver.NIC) error {
	rec, err := d.load(uuid)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return fmt.Errorf("start instance %s: %w", uuid, err)
	}
	if g.running() && g.init != 0 {
		return nil
	}
	if err := d.start(ctx, rec, nics); err != nil {
		return fmt.Errorf("start instance %s: %w", uuid, err)
	}
	d.changed(rec, driver.PowerStateRunning)
	return nil
}

func (d *Driver) start(ctx context.Context, rec record, nics []driver.NIC) error {
	if err := validateNICs(nics); err != nil {
		return err
	}
	if st, err := os.Stat(rec.RootFS); err != nil {
		return fmt.Errorf("look at root file system: %w", err)
	} else if !st.IsDir() {
		return fmt.Errorf("root file system %s is not a directory", rec.RootFS)
	}
	if !rec.Spec.Limits.Privileged {
		if err := enterable(rec.RootFS, rec.Spec.IDs); err != nil {
			return err
		}
	}
	// Found out later, when the links are in the guest's namespace, it would destroy them.
	if _, err := findInit(rec.RootFS); err != nil {
		return fmt.Errorf("look at /%s of the image: %w", initPath, err)
	}
	// What a crash left of an earlier run would be in the way.
	if err := d.clear(ctx, rec.Spec.Name); err != nil {
		return err
	}
	if err := d.configure(ctx, rec, nics); err != nil {
		return err
	}
	if err := d.prepareStart(rec); err != nil {
		return err
	}
	if err := d.forkStart(ctx, rec); err != nil {
		return d.failedStart(ctx, rec, nics, err)
	}
	g, err := d.settled(ctx, rec.Spec.Name) // liblxc tells of the start just before init is executed
	if err == nil {
		err = d.isolated(rec, g)
	}
	if err != nil {
		return d.failedStart(ctx, rec, nics, err)
	}
	return d.unmark(rec, rebootWanted)
}

// configure writes the configuration of a guest that is about to start, and sets the limits of its devices.
func (d *Driver) configure(ctx context.Context, rec record, nics []driver.NIC) error {
	devices, err := d.throttled(ctx, rec)
	if err != nil {
		return err
	}
	if err := d.writeConfig(ctx, rec, nics, devices); err != nil {
		return err
	}
	if err := d.holdWriteback(rec, devices); err != nil {
		return errors.Join(err, d.releaseWriteback(rec.Spec.Name))
	}
	return nil
}

// validateNICs refuses what would bend the configuration, and links that are not on
// the host: liblxc would say no more than "failed to create network".
func validateNICs(nics []driver.NIC) error {
	for _, nic := range nics {
		if !deviceForm.MatchString(nic.Name) {
			return fmt.Errorf("port %s: %q is no name for an interface", nic.PortID, nic.Name)
		}
		if nic.Link.MAC != "" && !macForm.MatchString(nic.Link.MAC) {
			return fmt.Errorf("port %s: %q is no MAC address", nic.PortID, nic.Link.MAC)
		}
		if !linkExists(nic.Link.Peer) {
			return fmt.Errorf("port %s: link %q is not in the host's network namespace", nic.PortID, nic.Link.Peer)
		}
	}
	return nil
}

func linkExists(name string) bool {
	if !deviceForm.MatchString(name) {
		return false
	}
	_, err := os.Lstat(filepath.Join("/sys/class/net", name))
	return err == nil
}

// forkStart runs the start in a child. Its standard output is a file: the monitor may
// hold it for a moment longer than the child lives, and a pipe would make Wait hang.
func (d *Driver) forkStart(ctx context.Context, rec record) error {
	log := d.logFile(rec.Spec.Name)
	if err := os.Rename(log, log+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("rotate log: %w", err)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640) //nolint:gosec // group may read logs
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer out.Close() //nolint:errcheck // only the child writes to it
	cmd := exec.CommandContext(ctx, d.o.Executable, commandStart, d.o.LXCPath, rec.Spec.Name, log)
	cmd.Env = childEnv(rec)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	// What the child forked is still in its process group, or in the monitor's cgroup already.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", driver.ErrTimeout, ctx.Err())
		}
		return err
	}
	return nil
}

// childEnv is the environment of the hidden sub-commands, which the monitor keeps.
// A privileged guest could write to the binary that runs inside it (CVE-2019-5736),
// so liblxc then runs from a sealed copy in memory (rexec.c).
func childEnv(rec record) []string {
	env := []string{childPath, "LANG=C.UTF-8"}
	if rec.Spec.Limits.Privileged {
		env = append(env, "LXC_MEMFD_REXEC=1")
	}
	return env
}

// isolated confirms that a guest that was just started shares no namespace with the host.
func (d *Driver) isolated(rec record, g guest) error {
	if g.init == 0 {
		return errors.New("the guest's init ended at once")
	}
	if shared := sharedNamespaces(g.init, rec.Spec.Limits.Privileged); len(shared) > 0 {
		return fmt.Errorf("the guest is in the host's %s namespace", strings.Join(shared, ", "))
	}
	return nil
}

// failedStart removes what a failed start left and gives liblxc's own reasons.
func (d *Driver) failedStart(ctx context.Context, rec record, nics []driver.NIC, cause error) error {
	if lines := errorLines(d.logFile(rec.Spec.Name)); len(lines) > 0 {
		reasons := strings.Join(lines, "; ")
		if _, ok := errors.AsType[*exec.ExitError](cause); ok { // the child's exit status says nothing
			cause = errors.New(reasons)
		} else {
			cause = fmt.Errorf("%w: %s", cause, reasons)
		}
	}
	// The request may be over; the host is cleaned nevertheless.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := d.clear(ctx, rec.Spec.Name); err != nil {
		cause = fmt.Errorf("%w; clean up: %w", cause, err)
	}
	for _, nic := range nics {
		if !linkExists(nic.Link.Peer) {
			cause = fmt.Errorf("%w; link %s of port %s is lost and must be plugged again", cause, nic.Link.Peer, nic.PortID)
		}
	}
	return cause
}

// errorLine is "lxc NAME DATE LEVEL CATEGORY - FILE:FUNCTION:LINE - TEXT" (log.c:log_append_logfile).
var errorLine = regexp.MustCompile(`^lxc \S+ \S+ ERROR +\S+ - \S+ - (.*)$`)

// consequences are ERROR lines that only say that an earlier one was fatal.
var consequences = []string{
	"An error occurred in another process", "Received container state", "Failed to spawn container",
	"start container: ", // the child's own
}

// errorLines returns the texts of the first ERROR lines of a log that tell a cause, or
// of all if none does. Lines that the child itself wrote count as well.
func errorLines(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var causes, others []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if m := errorLine.FindStringSubmatch(line); m != nil {
			line = m[1]
		} else if line == "" || strings.HasPrefix(line, "lxc ") {
			continue
		}
		if slices.ContainsFunc(consequences, func(c string) bool { return strings.HasPrefix(line, c) }) {
			others = append(others, line)
			continue
		}
		causes = append(causes, line)
	}
	if len(causes) == 0 {
		causes = others
	}
	return causes[:min(len(causes), maxErrorLines)]
}
