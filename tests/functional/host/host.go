// Package host observes what instances leave on the machine that they run on.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Snapshot is what there is on the host, by kind.
type Snapshot map[string][]string

// Take observes links, network namespaces, the containers with files below stateDir (mounts, loop devices, monitors, control groups,
// files), and, unless ovs is nil, what the command says about Open vSwitch. Containers of others are not looked at.
func Take(ctx context.Context, stateDir string, ovs func(context.Context) ([]string, error)) (Snapshot, error) {
	s := Snapshot{}
	for kind, observe := range map[string]func(string) ([]string, error){
		"link":          func(string) ([]string, error) { return links() },
		"netns":         func(string) ([]string, error) { return names("/run/netns") },
		"mount":         mounts,
		"loop device":   loopDevices,
		"control group": controlGroups,
		"monitor":       monitors,
		"file":          files,
	} {
		found, err := observe(stateDir)
		if err != nil {
			return nil, err
		}
		s[kind] = found
	}
	if ovs != nil {
		found, err := ovs(ctx)
		if err != nil {
			return nil, err
		}
		s["ovs"] = found
	}
	return s, nil
}

// Since lists what is there now and was not before, as "kind name".
func (s Snapshot) Since(before Snapshot) []string {
	var left []string
	for kind, found := range s {
		for _, name := range found {
			if !slices.Contains(before[kind], name) {
				left = append(left, kind+" "+name)
			}
		}
	}
	slices.Sort(left)
	return left
}

func links() ([]string, error) {
	interfaces, err := net.Interfaces()
	var found []string
	for _, i := range interfaces {
		found = append(found, i.Name)
	}
	return found, err
}

func mounts(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	var found []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			found = append(found, fields[1])
		}
	}
	return found, err
}

func loopDevices(dir string) ([]string, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var found []string
	for _, file := range backing {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		if name := strings.TrimSpace(string(text)); strings.HasPrefix(name, dir+"/") {
			found = append(found, name)
		}
	}
	return found, err
}

// controlGroups lists the groups that liblxc makes for containers, whatever the hierarchies are. One named lxc.pivot, which liblxc
// uses while it removes another, stays for good.
func controlGroups(dir string) ([]string, error) {
	all, err := containers()
	if err != nil {
		return nil, err
	}
	return walk("/sys/fs/cgroup", func(_ string, entry fs.DirEntry) bool {
		name, ok := strings.CutPrefix(entry.Name(), "lxc.")
		if !entry.IsDir() || !ok || name == "pivot" {
			return false
		}
		_, name, _ = strings.Cut(name, ".") // lxc.payload.NAME
		return !slices.ContainsFunc(all, func(c container) bool { return c.name == name && !strings.HasPrefix(c.path, dir+"/") })
	})
}

// container is a running one, as its monitor's command line tells.
type container struct{ path, name string }

func containers() ([]container, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []container
	for _, file := range lines {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		// [lxc monitor] PATH NAME
		fields := strings.Fields(strings.ReplaceAll(string(text), "\x00", " "))
		if len(fields) == 4 && fields[0] == "[lxc" {
			found = append(found, container{fields[2], fields[3]})
		}
	}
	return found, err
}

func monitors(dir string) ([]string, error) {
	all, err := containers()
	var found []string
	for _, c := range all {
		if strings.HasPrefix(c.path, dir+"/") {
			found = append(found, c.path+" "+c.name)
		}
	}
	return found, err
}

// files below the state directory that belong to instances. The image store and the database stay when instances go.
func files(stateDir string) ([]string, error) {
	return walk(stateDir, func(path string, entry fs.DirEntry) bool {
		return !strings.Contains(path+"/", "/images/") && !strings.HasSuffix(entry.Name(), ".db")
	})
}

func walk(root string, want func(string, fs.DirEntry) bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
			return nil // gone meanwhile, or never there
		case err != nil:
			return err
		case strings.HasSuffix(path, "/rootfs") || strings.HasSuffix(path, "/merged"):
			return fs.SkipDir // a guest's own files
		case want(path, entry):
			found = append(found, path)
		}
		return nil
	})
	return found, err
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []string
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	return found, err
}

// Purge ends the containers that live below dir, for when no agent is there to do it. One that ends meanwhile is as good.
func Purge(ctx context.Context, dir string) error {
	all, err := containers()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range all {
		if !strings.HasPrefix(c.path, dir+"/") {
			continue
		}
		out, err := exec.CommandContext(ctx, "lxc-stop", "-P", c.path, "-n", c.name, "--kill").CombinedOutput()
		if now, listErr := containers(); err != nil && (listErr != nil || slices.Contains(now, c)) {
			errs = append(errs, fmt.Errorf("end container %s: %w: %s", c.name, err, out))
		}
	}
	return errors.Join(errs...)
}

// Ping sends one echo request from the network namespace and waits up to two seconds for the answer.
func Ping(ctx context.Context, netns, address string) error {
	return exec.CommandContext(ctx, "ip", "netns", "exec", netns, "ping", "-c1", "-W2", address).Run()
}
