package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// searchPath is where commands are looked up, in the chroot and on the host.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// proxies are the variables of this process that apt may need.
var proxies = []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// chrootCommand is a command in the chroot, run by a user of the chroot, with an environment of its own.
func (p *Plane) chrootCommand(ctx context.Context, user string, env []string, args ...string) *exec.Cmd {
	line := []string{"--userspec=" + user, p.Root, "/usr/bin/env", "-i", "PATH=" + searchPath, "LC_ALL=C.UTF-8", "TERM=dumb"}
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		line = append(line, "HOME=/root")
	}
	line = append(append(line, env...), args...)
	return exec.CommandContext(ctx, "/usr/sbin/chroot", line...)
}

// Run runs a command in the chroot as a user and returns its standard output. The error holds the end of what it wrote.
func (p *Plane) Run(ctx context.Context, user string, args ...string) (string, error) {
	return capture(p.chrootCommand(ctx, user, nil, args...), strings.Join(args, " "))
}

// Command is a command in the chroot for the caller to run, as root and in a directory of the chroot.
func (p *Plane) Command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	return p.chrootCommand(ctx, "root", nil, append([]string{"sh", "-c", `cd "$0" && exec "$@"`, dir}, args...)...)
}

// host runs a command of the host.
func host(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return capture(cmd, name+" "+strings.Join(args, " "))
}

func capture(cmd *exec.Cmd, what string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", what, err, tail(stderr.String()+stdout.String(), 800))
	}
	return stdout.String(), nil
}

// logged runs a command with everything it writes going to a log file below the base directory.
func (p *Plane) logged(cmd *exec.Cmd, log string) error {
	path := p.path("log", log+".log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Run(); err != nil {
		text, readErr := os.ReadFile(path)
		return errors.Join(fmt.Errorf("%s: %w (all of it in %s)\n%s", log, err, path, tail(string(text), 1500)), readErr)
	}
	return nil
}

func tail(text string, n int) string {
	text = strings.TrimSpace(text)
	if len(text) > n {
		text = "…" + text[len(text)-n:]
	}
	return text
}

// mounts of the chroot, in order. sysfs and proc are new ones: they show the network namespace of whoever calls Up.
func (p *Plane) mounts() []mount {
	return []mount{
		{p.Root, p.Root, "", unix.MS_BIND}, // `ip netns exec` needs a mount point for its root
		{"proc", p.inRoot("proc"), "proc", 0},
		{"sysfs", p.inRoot("sys"), "sysfs", 0},
		{"/dev", p.inRoot("dev"), "", unix.MS_BIND | unix.MS_REC},
	}
}

type mount struct {
	source, target, kind string
	flags                uintptr
}

// mount makes the chroot fit to run services.
func (p *Plane) mount() error {
	for _, m := range p.mounts() {
		if isMountPoint(m.target) {
			continue
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
		// What is mounted or unmounted on one side is not to reach the other.
		if err := unix.Mount("", m.target, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mount %s private: %w", m.target, err)
		}
	}
	return nil
}

// mountNetns makes /run/netns one place for the host and the chroot, as `ip netns` itself would on its first use.
func (p *Plane) mountNetns() error {
	const netns = "/run/netns"
	target := p.inRoot("run/netns")
	for _, dir := range []string{netns, target} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if !isMountPoint(netns) {
		if err := unix.Mount(netns, netns, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", netns, err)
		}
		if err := p.setMark("netns", "ours"); err != nil {
			return err
		}
	}
	if err := unix.Mount("", netns, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", netns, err)
	}
	if isMountPoint(target) {
		return nil
	}
	if err := unix.Mount(netns, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

// unmount takes away everything mounted below the base directory, innermost first.
func (p *Plane) unmount() error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	slices.Reverse(points)
	var errs []error
	for _, point := range points {
		if !strings.HasPrefix(point, p.Base+"/") {
			continue
		}
		// A mount may be busy for a moment after the last process ended; it goes with its last user then.
		if err := unix.Unmount(point, 0); errors.Is(err, unix.EBUSY) {
			errs = append(errs, unix.Unmount(point, unix.MNT_DETACH))
		} else if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: gone with a shared peer
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// mountPoints lists where something is mounted, in mount order.
func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			points = append(points, strings.ReplaceAll(fields[1], `\040`, " "))
		}
	}
	return points, nil
}

func isMountPoint(path string) bool {
	points, err := mountPoints()
	return err == nil && slices.Contains(points, path)
}

// writeFile writes a file of the chroot with its directories.
func (p *Plane) writeFile(path, text string, mode os.FileMode) error {
	path = p.inRoot(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// copyFile copies the bytes of one file.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
