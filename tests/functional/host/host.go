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
)

// Snapshot is what there is on the host, by kind.
type Snapshot map[string][]string

// Take observes links, mounts, loop devices, control groups of containers, network namespaces, container monitors, files below
// stateDir, and (unless ovs is nil) what the command says about Open vSwitch.
func Take(ctx context.Context, stateDir string, ovs func(context.Context) ([]string, error)) (Snapshot, error) {
	s := Snapshot{}
	for kind, observe := range map[string]func() ([]string, error){
		"link":          links,
		"mount":         mounts,
		"loop device":   loopDevices,
		"control group": controlGroups,
		"netns":         func() ([]string, error) { return names("/run/netns") },
		"monitor":       monitors,
		"file":          func() ([]string, error) { return files(stateDir) },
	} {
		found, err := observe()
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

// Since lists what is there now and was not before, and what is gone, as "+ kind name" and "- kind name".
func (s Snapshot) Since(before Snapshot) []string {
	var changes []string
	compare := func(sign string, one, other Snapshot) {
		for kind, found := range one {
			for _, name := range found {
				if !slices.Contains(other[kind], name) {
					changes = append(changes, sign+" "+kind+" "+name)
				}
			}
		}
	}
	compare("+", s, before)
	compare("-", before, s)
	slices.Sort(changes)
	return changes
}

func links() ([]string, error) {
	interfaces, err := net.Interfaces()
	var found []string
	for _, i := range interfaces {
		found = append(found, i.Name)
	}
	return found, err
}

func mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	var found []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			found = append(found, fields[1])
		}
	}
	return found, err
}

func loopDevices() ([]string, error) {
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
		found = append(found, strings.TrimSpace(string(text)))
	}
	return found, err
}

// controlGroups lists the groups that liblxc makes, whatever the hierarchies are.
func controlGroups() ([]string, error) {
	return walk("/sys/fs/cgroup", func(_ string, entry fs.DirEntry) bool {
		return entry.IsDir() && strings.HasPrefix(entry.Name(), "lxc")
	})
}

func monitors() ([]string, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, file := range lines {
		if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), "[lxc monitor]") {
			found = append(found, strings.ReplaceAll(strings.TrimRight(string(text), "\x00"), "\x00", " "))
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
		case errors.Is(err, fs.ErrNotExist):
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

// Purge ends the containers that live below dir, for when no agent is there to do it.
func Purge(ctx context.Context, dir string) error {
	found, err := monitors()
	if err != nil {
		return err
	}
	var errs []error
	for _, line := range found { // [lxc monitor] PATH NAME
		fields := strings.Fields(line)
		if len(fields) != 4 || !strings.HasPrefix(fields[2], dir+"/") {
			continue
		}
		out, err := exec.CommandContext(ctx, "lxc-stop", "-P", fields[2], "-n", fields[3], "--kill").CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("end container %s: %w: %s", fields[3], err, out))
		}
	}
	return errors.Join(errs...)
}

// Ping sends one echo request from the network namespace and waits up to two seconds for the answer.
func Ping(ctx context.Context, netns, address string) error {
	return exec.CommandContext(ctx, "ip", "netns", "exec", netns, "ping", "-c1", "-W2", address).Run()
}
