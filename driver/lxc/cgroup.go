package lxc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/driver"
)

// layout is how the host mounts its cgroups.
type layout int

const (
	layoutV1 layout = iota
	layoutHybrid
	layoutV2
)

func (l layout) String() string {
	switch l {
	case layoutV1:
		return "cgroup v1"
	case layoutHybrid:
		return "hybrid (cgroup v1 controllers with a unified tree beside)"
	case layoutV2:
	}
	return "cgroup v2"
}

const (
	cgroupRoot = "/sys/fs/cgroup"
	// unified is the key of the cgroup v2 tree in cgroups.dirs.
	unified = ""
	// freezePoll is how often a slow freezer is asked again.
	freezePoll = 5 * time.Millisecond
)

// cgroups knows where liblxc puts its groups: below init's own group in every
// hierarchy when the caller is root (cgfsng.c:cgroup_hierarchies). The groups are
// named explicitly in the configuration, so liblxc never adds a suffix to them.
type cgroups struct {
	layout layout
	dirs   map[string]string // controller, "name=systemd" or unified -> directory
}

// payload and monitor are the groups of a container's processes and of its monitor.
func payload(name string) string { return "lxc.payload." + name }
func monitor(name string) string { return "lxc.monitor." + name }

func readCgroups() (cgroups, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, err
	}
	defer mounts.Close() //nolint:errcheck // only read
	own, err := os.Open("/proc/1/cgroup")
	if err != nil {
		return cgroups{}, err
	}
	defer own.Close() //nolint:errcheck // only read
	return parseCgroups(mounts, own)
}

// parseCgroups reads /proc/self/mountinfo and /proc/1/cgroup (proc(5), cgroups(7)).
func parseCgroups(mountinfo, initCgroup io.Reader) (cgroups, error) {
	base := make(map[string]string)
	s := bufio.NewScanner(initCgroup)
	for s.Scan() {
		f := strings.SplitN(s.Text(), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			base[c] = strings.TrimSuffix(f[2], "/init.scope")
		}
	}
	if err := s.Err(); err != nil {
		return cgroups{}, err
	}
	cg := cgroups{dirs: make(map[string]string)}
	v1 := false
	s = bufio.NewScanner(mountinfo)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		root, point := f[3], f[4]
		if point != cgroupRoot && !strings.HasPrefix(point, cgroupRoot+"/") {
			continue
		}
		dir := func(controller string) string {
			return filepath.Join(point, strings.TrimPrefix(base[controller], root))
		}
		switch g[0] {
		case "cgroup2":
			cg.dirs[unified] = dir(unified)
		case "cgroup":
			v1 = true
			for o := range strings.SplitSeq(g[2], ",") {
				if _, known := base[o]; known {
					cg.dirs[o] = dir(o)
				}
			}
		}
	}
	if err := s.Err(); err != nil {
		return cgroups{}, err
	}
	_, v2 := cg.dirs[unified]
	switch {
	case v1 && v2:
		cg.layout = layoutHybrid
	case v2:
		cg.layout = layoutV2
	case v1:
		cg.layout = layoutV1
	default:
		return cgroups{}, errors.New("no cgroup file system is mounted below " + cgroupRoot)
	}
	return cg, nil
}

// missing names the controllers without which limits would not hold.
func (c cgroups) missing() []string {
	var missing []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !c.has(name) {
			missing = append(missing, name)
		}
	}
	return missing
}

func (c cgroups) has(controller string) bool {
	if c.layout != layoutV2 {
		_, ok := c.dirs[controller]
		return ok
	}
	b, err := os.ReadFile(filepath.Join(c.dirs[unified], "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(b)), controller)
}

// file is the path of a control file of a group.
func (c cgroups) file(controller, group, file string) string {
	if c.layout == layoutV2 {
		controller = unified
	}
	return filepath.Join(c.dirs[controller], group, file)
}

// tree is one hierarchy in which every process of a group is found.
func (c cgroups) tree() string {
	for _, k := range []string{"pids", "freezer", "name=systemd", unified} {
		if dir, ok := c.dirs[k]; ok {
			return dir
		}
	}
	return c.dirs[unified]
}

// procs lists the processes of a group and of the groups below it; a group that
// does not exist has none.
func (c cgroups) procs(group string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(filepath.Join(c.tree(), group), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil //nolint:nilerr // the group vanished, or is threaded and its domain lists the processes
		}
		for f := range bytes.FieldsSeq(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// frozen tells whether a group is frozen completely.
func (c cgroups) frozen(group string) bool {
	if c.layout == layoutV2 {
		b, err := os.ReadFile(c.file(unified, group, "cgroup.events"))
		return err == nil && bytes.Contains(b, []byte("frozen 1"))
	}
	b, err := os.ReadFile(c.file("freezer", group, "freezer.state"))
	return err == nil && strings.TrimSpace(string(b)) == "FROZEN"
}

// freeze freezes or thaws a group and waits until the kernel is done. A process in
// uninterruptible sleep cannot be frozen: the group is thawed again and ErrTimeout returned.
func (c cgroups) freeze(ctx context.Context, group string, on bool) error {
	file, frozen, thawed := c.file("freezer", group, "freezer.state"), "FROZEN", "THAWED"
	if c.layout == layoutV2 {
		file, frozen, thawed = c.file(unified, group, "cgroup.freeze"), "1", "0"
	}
	word := thawed
	if on {
		word = frozen
	}
	for {
		// v1 retries the tasks that escaped at every write.
		if err := os.WriteFile(file, []byte(word), 0); err != nil {
			return fmt.Errorf("write %s to %s: %w", word, filepath.Base(file), err)
		}
		if c.frozen(group) == on {
			return nil
		}
		if err := pause(ctx, freezePoll); err != nil {
			if on {
				// Thawing needs no waiting: it is done when the write returns.
				if terr := os.WriteFile(file, []byte(thawed), 0); terr != nil {
					return fmt.Errorf("%w: %w, and it stays half frozen: %w", driver.ErrTimeout, err, terr)
				}
			}
			return fmt.Errorf("%w: %w", driver.ErrTimeout, err)
		}
	}
}

// forbidForks keeps a group from growing while it is being killed.
func (c cgroups) forbidForks(group string) {
	_ = os.WriteFile(c.file("pids", group, "pids.max"), []byte("0"), 0) // best effort: the group may be gone
}

// kill asks the kernel (5.14 and later) to kill a whole group; false if it cannot.
func (c cgroups) kill(group string) bool {
	dir, ok := c.dirs[unified]
	return ok && os.WriteFile(filepath.Join(dir, group, "cgroup.kill"), []byte("1"), 0) == nil
}

// remove deletes a group and the groups below it in every hierarchy. Groups that
// hold processes stay and are reported.
func (c cgroups) remove(group string) error {
	var errs []error
	for _, base := range c.dirs {
		if err := removeTree(filepath.Join(base, group)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
