package lxc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// Problem is something about the host that keeps guests from running or from being
// safe, with what an operator can do about it.
type Problem struct {
	What   string
	Remedy string
	// Fatal: no guest would start, or not as safely as it must; the agent refuses to run.
	Fatal bool
}

// Check is something of the host that was looked at. Without problems it is as guests need it.
type Check struct {
	Name     string
	Problems []Problem
}

// Checks looks at the host once, as at the agent's start. It changes nothing.
func (d *Driver) Checks(ctx context.Context) []Check {
	return []Check{
		{"privileges", checkPrivileges()},
		{"kernel", checkKernel()},
		{"control groups", d.checkCgroups()},
		{"seccomp", d.checkSeccomp()},
		{"inotify", checkInotify(readInt("/proc/sys/fs/inotify/max_user_instances"))},
		{"ids of guests", d.checkIDs()},
		{"AppArmor", d.checkAppArmor()},
		{"lxcfs", d.checkLXCFS(ctx)},
	}
}

func checkPrivileges() []Problem {
	if os.Geteuid() == 0 {
		return nil
	}
	return []Problem{{"the agent does not run as root", "run it as root; it maps ids, moves links and writes cgroups", true}}
}

func checkKernel() []Problem {
	var problems []Problem
	if n, err := readInt("/proc/sys/user/max_user_namespaces"); err != nil || n == 0 {
		problems = append(problems, Problem{"the kernel has no user namespaces or they are switched off", "set user.max_user_namespaces above 0", true})
	}
	if fd, err := unix.PidfdOpen(os.Getpid(), unix.PIDFD_NONBLOCK); err != nil {
		problems = append(problems, Problem{"the kernel has no pidfd_open(2) with PIDFD_NONBLOCK", "use Linux 5.10 or later", true})
	} else {
		_ = unix.Close(fd)
	}
	return problems
}

func (d *Driver) checkCgroups() []Problem {
	var problems []Problem
	if missing := d.cgroups.missing(); len(missing) > 0 {
		problems = append(problems, Problem{
			"cgroup controllers are missing: " + strings.Join(missing, ", "),
			"enable them (kernel parameters cgroup_enable=…, or cgroup.subtree_control)", true,
		})
	}
	if !d.swapAccount() {
		problems = append(problems, Problem{"the kernel does not account for swap, so guests can swap without limit", "boot with swapaccount=1", false})
	}
	return problems
}

func (d *Driver) checkIDs() []Problem {
	granted, err := hostinfo.SubordinateIDs("root")
	return checkIDMap(d.o.IDPool, mapTools(), granted, err)
}

// fewInotify is what some hundred guests with systemd use: each some ten inotify instances.
const fewInotify = 1024

// checkInotify: what a guest uses counts for the host's root as well, who made its user namespace
// (kernel/ucount.c:inc_ucount), so that all guests together have what the host gives to one user.
// One that gets none ends before it has begun to log.
func checkInotify(instances int64, failure error) []Problem {
	if failure != nil || instances >= fewInotify {
		return nil // a kernel without inotify has no such limit
	}
	return []Problem{{
		What:   fmt.Sprintf("all guests together have %d inotify instances, and a guest with systemd takes some ten", instances),
		Remedy: "set fs.inotify.max_user_instances to 65536 (etc/compute-agent.sysctl.conf of the sources)",
	}}
}

func (d *Driver) checkSeccomp() []Problem {
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		return []Problem{{"the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER", true}}
	}
	if st, err := os.Stat(d.seccompProfile()); err != nil || !st.Mode().IsRegular() {
		return []Problem{{"seccomp profile " + d.seccompProfile() + " cannot be read", "correct the option or leave it empty", true}}
	}
	return nil
}

func (d *Driver) checkAppArmor() []Problem {
	switch {
	case d.o.AppArmor == ModeUnconfined:
	case appArmorEnabled() && d.o.AppArmor != ModeAuto && d.o.AppArmor != ModeGenerated:
	case appArmorEnabled() && !appArmorParser():
		return []Problem{{
			"AppArmor is on but apparmor_parser is missing, so guests run without a profile",
			"install apparmor", d.o.AppArmor == ModeGenerated,
		}}
	case !appArmorEnabled():
		return []Problem{{
			"the host has no AppArmor, so guests run without a profile",
			"boot with apparmor=1 security=apparmor, or leave it to the user namespace and seccomp", d.o.AppArmor != ModeAuto,
		}}
	}
	return nil
}

func (d *Driver) checkLXCFS(ctx context.Context) []Problem {
	switch {
	case d.o.LXCFS == ModeOff || d.lxcfs(ctx) != "":
		return nil
	case d.o.LXCFS == ModeOn:
		return []Problem{{"lxcfs is required, but none answers at " + d.o.LXCFSMount, "install and start lxcfs", true}}
	}
	return []Problem{{
		"no lxcfs answers at " + d.o.LXCFSMount + ", so guests see the node's memory and uptime as theirs",
		"install and start lxcfs, or set [lxc] lxcfs to off", false,
	}}
}

// mapTools tells which of newuidmap and newgidmap are where the children look for them.
// liblxc uses them even as root, if it finds both (idmap_utils.c:lxc_map_ids).
func mapTools() map[string]bool {
	tools := make(map[string]bool)
	for dir := range strings.SplitSeq(strings.TrimPrefix(childPath, "PATH="), ":") {
		for _, name := range []string{"newuidmap", "newgidmap"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				tools[name] = true
			}
		}
	}
	return tools
}

// checkIDMap verifies that root may map the pool with the tools that are installed.
// granted are root's subordinate ids, failure why they cannot be read.
func checkIDMap(pool []storage.IDRange, tools map[string]bool, granted []hostinfo.IDRange, failure error) []Problem {
	if !tools["newuidmap"] && !tools["newgidmap"] {
		return nil // liblxc writes the maps itself
	}
	if !tools["newuidmap"] || !tools["newgidmap"] {
		return []Problem{{"only one of newuidmap and newgidmap is installed", "install both (package uidmap) or none", true}}
	}
	if failure != nil {
		return []Problem{{failure.Error(), "correct the file, see subuid(5)", true}}
	}
	if len(granted) == 0 {
		return []Problem{{
			"root has no ids to give to guests that both /etc/subuid and /etc/subgid name",
			"echo root:1000000:1000000000 | tee -a /etc/subuid >> /etc/subgid", true,
		}}
	}
	var problems []Problem
	for _, want := range pool {
		if !covered(want, granted) {
			problems = append(problems, Problem{
				fmt.Sprintf("root may not map ids %d to %d by both /etc/subuid and /etc/subgid", want.Base, want.Base+want.Size-1),
				fmt.Sprintf("add a line root:%d:%d to both files", want.Base, want.Size), true,
			})
		}
	}
	return problems
}

func covered(want storage.IDRange, granted []hostinfo.IDRange) bool {
	for _, g := range granted {
		if want.Base >= g.Base && uint64(want.Base)+uint64(want.Size) <= uint64(g.Base)+uint64(g.Size) {
			return true
		}
	}
	return false
}

// swapAccount tells whether swap can be limited.
func (d *Driver) swapAccount() bool {
	if d.cgroups.layout != layoutV2 {
		_, err := os.Stat(d.cgroups.file("memory", "", "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	// The root group has no such file; any group below it has.
	found, err := filepath.Glob(filepath.Join(d.cgroups.dirs[unified], "*", "memory.swap.max"))
	return err == nil && len(found) > 0
}

// lxcfs is lxcfs' mount point if it shall be used, is there and answers: liblxc would wait for it without end.
func (d *Driver) lxcfs(ctx context.Context) string {
	if d.o.LXCFS == ModeOff || mountedAt(d.o.LXCFSMount) == "" {
		return ""
	}
	if err := d.lxcfsServer.answers(ctx); err != nil {
		reqctx.Log(ctx).WithField("path", d.o.LXCFSMount).WithError(err).Warning("lxcfs does not answer; what is configured without it stays so until its next start")
		return ""
	}
	return d.o.LXCFSMount
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
