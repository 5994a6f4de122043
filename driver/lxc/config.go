package lxc

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// plan is everything that a container's configuration depends on: the record and
// what was found out about the host and the root file system.
type plan struct {
	record
	NICs    []driver.NIC
	devices []storage.Device // of the disks that are throttled

	init         initSystem
	idmapRootFS  bool   // liblxc shall shift the ids of the root file system by an id-mapped mount
	layout       layout //
	swapAccount  bool   //
	seccomp      string // policy file
	appArmor     string // profile; "": the host has no AppArmor
	lxcfs        string // mount point of lxcfs; "": none
	console      string // console log file
	consoleBytes int64  // size of one of its two files
	preStart     string // hook script, see nic.go
}

// minConsoleFile is a page.
const minConsoleFile = 4096

// writeConfig renders the configuration of an instance and puts it where liblxc reads it.
func (d *Driver) writeConfig(ctx context.Context, r record, nics []driver.NIC, devices []storage.Device) error {
	p, err := d.plan(ctx, r, nics)
	if err != nil {
		return err
	}
	p.devices = devices
	// Not durable: it is written anew before every start.
	return writeFile(d.configFile(r.Spec.Name), []byte(p.render()), false)
}

func (p *plan) render() string {
	var b strings.Builder
	for _, i := range p.items() {
		fmt.Fprintf(&b, "%s = %s\n", i.key, i.value)
	}
	return b.String()
}

func (d *Driver) plan(ctx context.Context, r record, nics []driver.NIC) (plan, error) {
	p := plan{
		record:       r,
		NICs:         nics,
		init:         detectInit(r.RootFS),
		layout:       d.cgroups.layout,
		swapAccount:  d.swapAccount(),
		seccomp:      d.seccompProfile(),
		appArmor:     d.appArmor(),
		lxcfs:        d.lxcfs(ctx),
		console:      d.consoleFile(r.Spec.Name),
		consoleBytes: consoleFileSize(d.o.ConsoleSize),
		preStart:     d.markFile(r, preStart),
	}
	if err := p.inspectRootFS(); err != nil {
		return plan{}, err
	}
	if err := p.resolveBinds(); err != nil {
		return plan{}, err
	}
	return p, nil
}

// items renders the configuration (lxc.container.conf(5)).
func (p *plan) items() []item {
	s, name := p.Spec, p.Spec.Name
	var items []item
	add := func(key, value string) { items = append(items, item{"lxc." + key, value}) }

	add("uts.name", cmp.Or(s.Hostname, name))
	if s.Arch != "" {
		add("arch", s.Arch)
	}
	// Explicit groups get no "-1" suffix when an old one is left over: the start fails instead.
	add("cgroup.dir.container", payload(name))
	add("cgroup.dir.monitor", monitor(name))

	add("rootfs.path", "dir:"+p.RootFS)
	add("rootfs.managed", "0")
	if p.idmapRootFS {
		add("rootfs.options", "idmap=container")
	}
	if !s.Limits.Privileged {
		for _, kind := range []string{"u", "g"} {
			add("idmap", fmt.Sprintf("%s 0 %d %d", kind, s.IDs.Base, s.IDs.Size))
		}
	}
	items = append(items, p.deviceAndMountItems()...)
	items = append(items, p.consoleItems()...)
	items = append(items, p.securityItems()...)
	items = append(items, p.processItems()...)
	items = append(items, limitItems(s.Limits, p.layout, p.swapAccount)...)
	items = append(items, diskItems(s.Limits.Disk, p.layout, p.devices)...)
	items = append(items, deviceItems(p.layout)...)
	return append(items, p.networkItems()...)
}

func (p *plan) deviceAndMountItems() []item {
	items := []item{{"lxc.autodev", "1"}, {"lxc.tty.max", "0"}, {"lxc.pty.max", "1024"}}
	auto := "proc:rw sys:rw cgroup:rw:force"
	if p.Spec.Limits.Privileged { // nothing but read-only mounts stands between its root and the host's
		auto = "proc:mixed sys:mixed cgroup:mixed:force"
	}
	items = append(items, item{"lxc.mount.auto", auto})
	entries := []string{
		"/dev/fuse dev/fuse none bind,create=file,optional",
		"/dev/net/tun dev/net/tun none bind,create=file,optional",
		"mqueue dev/mqueue mqueue rw,relatime,create=dir,optional",
		"/sys/fs/fuse/connections sys/fs/fuse/connections none bind,optional",
	}
	// The host's, none of the guest's business; and systemd, finding something mounted
	// there, does not fail to mount them itself.
	for _, dir := range []string{
		"sys/firmware", "sys/kernel/config", "sys/kernel/debug", "sys/kernel/tracing",
		"sys/block", "sys/class/block", "sys/dev/block", // the host's disks, which lsblk would list
	} {
		entries = append(entries, "tmpfs "+dir+" tmpfs ro,nosuid,nodev,noexec,optional")
	}
	if p.Spec.Limits.Nested {
		// The kernel lets a nested user namespace mount proc and sysfs only if it sees
		// instances of them that nothing covers (fs/namespace.c:mnt_already_visible).
		entries = append(entries,
			"proc dev/.lxc/proc proc create=dir,optional",
			"sys dev/.lxc/sys sysfs create=dir,optional")
	}
	if p.lxcfs != "" {
		for _, f := range lxcfsFiles {
			entries = append(entries, fmt.Sprintf("%s/%s %s none bind,optional", p.lxcfs, f, f))
		}
	}
	for _, b := range p.Spec.Binds {
		options := "bind,create=dir"
		if b.ReadOnly {
			options = "bind,ro,nosuid,nodev,noexec,create=dir"
		}
		entries = append(entries, b.Source+" "+b.Target+" none "+options)
	}
	for _, e := range entries {
		items = append(items, item{"lxc.mount.entry", e + " 0 0"})
	}
	return items
}

// consoleFileSize is the largest size of one of two files that together keep within a
// bound. liblxc takes powers of two, rounds up, and wants a page at least.
func consoleFileSize(bound int64) int64 {
	size := int64(minConsoleFile)
	for size*4 <= bound {
		size *= 2
	}
	return size
}

// consoleItems: without a ring buffer the monitor writes the log as it comes, and with
// rotate it renames a full file to .1 (terminal.c:lxc_terminal_write_log_file), so that
// the last half of the bound is always there, running or not, and over a reboot.
func (p *plan) consoleItems() []item {
	return []item{
		{"lxc.console.logfile", p.console},
		{"lxc.console.size", strconv.FormatInt(p.consoleBytes, 10)},
		{"lxc.console.rotate", "1"},
	}
}

func (p *plan) securityItems() []item {
	items := []item{{"lxc.seccomp.profile", p.seccomp}}
	if p.appArmor != "" {
		items = append(items, item{"lxc.apparmor.profile", p.appArmor})
		if p.Spec.Limits.Nested && p.appArmor == ModeGenerated {
			items = append(items, item{"lxc.apparmor.allow_nesting", "1"})
		}
		// What the guest's root may mount the kernel decides: it is root of a user namespace only. Without
		// this, services that systemd starts with a view of their own of the file system (ProtectProc and the like), such as
		// systemd-logind, end with status 226/NAMESPACE.
		if !p.Spec.Limits.Privileged && p.appArmor == ModeGenerated {
			items = append(items, item{"lxc.apparmor.raw", "mount,"})
		}
	}
	if p.Spec.Limits.Privileged { // others hold their capabilities in their user namespace only
		items = append(items, item{"lxc.cap.drop", "sys_time sys_module sys_rawio mac_admin mac_override"})
	}
	return items
}

func (p *plan) processItems() []item {
	items := []item{
		{"lxc.hook.pre-start", "/bin/sh " + p.preStart},
		{"lxc.signal.halt", p.init.haltName},
		{"lxc.signal.reboot", p.init.rebootName},
		{"lxc.signal.stop", "SIGKILL"},
		{"lxc.proc.oom_score_adj", "0"}, // not the agent's, which may be protected
	}
	env := map[string]string{"container": "lxc", "product_name": "OpenStack Nova"}
	maps.Copy(env, p.Spec.Env)
	for _, k := range slices.Sorted(maps.Keys(env)) {
		items = append(items, item{"lxc.environment", k + "=" + env[k]})
	}
	return items
}

// networkItems: without a NIC the guest gets a network namespace with lo alone.
// "none" would share the host's and is never written.
func (p *plan) networkItems() []item {
	if len(p.NICs) == 0 {
		return []item{{"lxc.net.0.type", "empty"}}
	}
	var items []item
	for n, nic := range p.NICs {
		add := func(key, value string) {
			items = append(items, item{"lxc.net." + strconv.Itoa(n) + "." + key, value})
		}
		add("type", "phys") // first: the other keys depend on it
		add("link", nic.Link.Peer)
		add("name", nic.Name)
		add("flags", "up")
		if nic.Link.MAC != "" {
			add("hwaddr", nic.Link.MAC)
		}
		if nic.Link.MTU > 0 {
			add("mtu", strconv.Itoa(nic.Link.MTU))
		}
	}
	return items
}
