// Package lxd runs LXD and Incus out of Debian's packages, for tests of images that go from them to the agent and back. A daemon has mounts,
// a network and processes of its own: it sees no link of the machine, and what it has mounted or started ends with it.
package lxd

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// Kind is one of the two programs.
type Kind struct {
	Name             string
	packages, suites []string
	daemon, client   string
	directory        string // variable that names the daemon's directory
}

// The programs. LXD is Debian 12's; Incus came later and is in the backports to it.
var (
	LXD = Kind{
		Name: "lxd", packages: []string{"lxd", "zstd", "iproute2"},
		daemon: "/usr/bin/lxd", client: "/usr/bin/lxc", directory: "LXD_DIR",
	}
	Incus = Kind{
		Name: "incus", packages: []string{"incus-base", "zstd", "iproute2"}, suites: []string{"bookworm-backports"},
		daemon: "/usr/libexec/incus/incusd", client: "/usr/bin/incus", directory: "INCUS_DIR",
	}
)

const (
	// stateDir and shareDir are in the daemon's root file system; shareDir is for files on their way in and out.
	stateDir = "/srv/state"
	shareDir = "/srv/share"
	// idRange is where the guests' ids are: away from those of the agent's guests.
	idRange = "root:2000000000:100000000\n"
	// namePrefix of the guests: their control groups are the machine's.
	namePrefix = "lab-"
)

//go:embed start.sh
var startScript string

// Daemon is one that runs.
type Daemon struct {
	Kind  Kind
	root  string
	first *exec.Cmd // the first process of its namespaces
	log   bytes.Buffer
}

// Start installs the program if need be and starts it with an empty directory, a storage pool of plain files, and no network.
func Start(ctx context.Context, plane *controlplane.Plane, kind Kind) (*Daemon, error) {
	root, err := plane.System(ctx, kind.Name, kind.packages, kind.suites...)
	if err != nil {
		return nil, err
	}
	d := &Daemon{Kind: kind, root: root}
	if err := d.prepare(); err != nil {
		return nil, err
	}
	// Not bound to ctx: Stop ends it, and the end of this process.
	d.first = exec.CommandContext(context.Background(), "/bin/bash", "-euc", startScript, kind.Name, root, kind.daemon, "--group", "root")
	d.first.Env = d.environment()
	d.first.Stdout, d.first.Stderr = &d.log, &d.log
	d.first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	if err := d.first.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", kind.Name, err)
	}
	if err := d.setUp(ctx); err != nil {
		err = errors.Join(err, d.Stop(ctx))
		return nil, fmt.Errorf("start %s: %w: %s", kind.Name, err, d.log.String()) // the log is written no more
	}
	return d, nil
}

// prepare empties what an earlier daemon has left.
func (d *Daemon) prepare() error {
	for _, dir := range []string{stateDir, shareDir} {
		if err := os.RemoveAll(d.root + dir); err != nil {
			return err
		}
		if err := os.MkdirAll(d.root+dir, 0o711); err != nil {
			return err
		}
	}
	for _, file := range []string{"etc/subuid", "etc/subgid"} {
		if err := os.WriteFile(filepath.Join(d.root, file), []byte(idRange), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for { // until the mounts are there
		_, err := d.command(ctx, d.Kind.daemon, "waitready", "--timeout", "30")
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
	if _, err := d.Run(ctx, "storage", "create", "default", "dir"); err != nil {
		return err
	}
	_, err := d.Run(ctx, "profile", "device", "add", "default", "root", "disk", "path=/", "pool=default")
	return err
}

func (d *Daemon) environment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", d.Kind.directory + "=" + stateDir,
	}
}

// Run runs the client, lxc or incus, in the shared directory.
func (d *Daemon) Run(ctx context.Context, args ...string) (string, error) {
	return d.command(ctx, append([]string{d.Kind.client}, args...)...)
}

func (d *Daemon) command(ctx context.Context, args ...string) (string, error) {
	enter := []string{
		"--target", strconv.Itoa(d.first.Process.Pid), "--mount", "--net", "--pid", "--",
		"/bin/sh", "-c", `cd "$0" && exec "$@"`, shareDir,
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = d.environment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// File is the name of a file of the shared directory as this process sees it.
func (d *Daemon) File(name string) string { return filepath.Join(d.root, shareDir, name) }

// Image is what the daemon knows of an image.
type Image struct {
	Fingerprint, Architecture, Type string
	Size                            int64
	Properties                      map[string]string
	Aliases                         []struct{ Name string }
}

// Image finds an image by its alias.
func (d *Daemon) Image(ctx context.Context, alias string) (Image, error) {
	text, err := d.Run(ctx, "image", "list", "--format", "json")
	if err != nil {
		return Image{}, err
	}
	var all []Image
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return Image{}, fmt.Errorf("read images of %s: %w", d.Kind.Name, err)
	}
	for _, image := range all {
		for _, a := range image.Aliases {
			if a.Name == alias {
				return image, nil
			}
		}
	}
	return Image{}, fmt.Errorf("%s has no image %s", d.Kind.Name, alias)
}

// Launch makes a guest of an image and starts it. It gives the guest's name.
func (d *Daemon) Launch(ctx context.Context, alias, name string) (string, error) {
	name = namePrefix + d.Kind.Name + "-" + name
	if _, err := d.Run(ctx, "--quiet", "init", alias, name); err != nil {
		return "", err
	}
	if _, err := d.Run(ctx, "--quiet", "start", name); err != nil {
		log, logErr := d.Run(ctx, "info", "--show-log", name)
		return "", errors.Join(fmt.Errorf("%w\n%s", err, log), logErr)
	}
	return name, nil
}

// Stop ends the guests and the daemon.
func (d *Daemon) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	names, err := d.Run(ctx, "list", "--format", "csv", "--columns", "n")
	for name := range strings.FieldsSeq(names) {
		_, deleteErr := d.Run(ctx, "delete", "--force", name)
		err = errors.Join(err, deleteErr)
	}
	// With the first process of its namespace every other one ends.
	err = errors.Join(err, d.first.Process.Kill())
	_ = d.first.Wait() // "killed", which is what was asked for
	return errors.Join(err, removeGroups(), os.RemoveAll(d.root+stateDir), os.RemoveAll(d.root+shareDir))
}

// removeGroups removes control groups of guests that could not be deleted.
func removeGroups() error {
	var groups []string
	for _, pattern := range []string{"/sys/fs/cgroup/lxc.*." + namePrefix + "*", "/sys/fs/cgroup/*/lxc.*." + namePrefix + "*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		groups = append(groups, found...)
	}
	var errs []error
	for _, group := range groups {
		var dirs []string
		errs = append(errs, filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		}))
		for _, dir := range slices.Backward(dirs) {
			errs = append(errs, os.Remove(dir)) // rmdir: the files in it are the kernel's
		}
	}
	return errors.Join(errs...)
}
