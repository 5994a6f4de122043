package config

import (
	"fmt"
	"slices"
	"strings"
)

// FakeHost is what a driver of nova's that starts nothing says its host has.
type FakeHost struct {
	Driver   string // e.g. fake.FakeDriver
	VCPUs    int
	MemoryMB int
	DiskGB   int
}

// fakeHosts are those that operators try a control plane with, and their figures (nova/virt/fake.py). The
// others of that file are for nova's own tests.
var fakeHosts = []FakeHost{
	{"fake.FakeDriver", 1000, 800_000, 600_000},
	{"fake.MediumFakeDriver", 10, 8192, 1028},
	{"fake.SmallFakeDriver", 2, 8192, 1028},
}

// otherDrivers are drivers of nova's releases, and of nova-lxd, that the nova.conf of a host may name which this agent takes over.
var otherDrivers = []string{
	"baremetal.BareMetalDriver", "hyperv.HyperVDriver", "hyperv.driver.HyperVDriver", "ironic.IronicDriver", "ironic.driver.IronicDriver",
	"libvirt.LibvirtDriver", "libvirt.driver.LibvirtDriver", "lxd.LXDDriver", "nova_lxd.nova.virt.lxd.LXDDriver", "powervm.PowerVMDriver",
	"powervm.driver.PowerVMDriver", "vmwareapi.VMwareVCDriver", "vmwareapi.driver.VMwareVCDriver", "xenapi.XenAPIDriver",
	"xenapi.driver.XenAPIDriver", "zvm.ZVMDriver", "zvm.driver.ZVMDriver",
}

// FakeHost tells whether compute_driver names a driver that starts nothing, and what it reports.
func (d *Defaults) FakeHost() (FakeHost, bool) {
	at := slices.IndexFunc(fakeHosts, func(f FakeHost) bool { return f.Driver == driverName(d.ComputeDriver) })
	if at < 0 {
		return FakeHost{}, false
	}
	return fakeHosts[at], true
}

// driverName is the name below nova.virt, where nova looks for it.
func driverName(value string) string { return strings.TrimPrefix(value, "nova.virt.") }

// checkDriver lets an operator's nova.conf be as it is, but takes no name that it does not know: one that was meant for a host
// that starts nothing must not start containers.
func (l *loader) checkDriver() {
	value := l.registry.config.Default.ComputeDriver
	_, fake := l.registry.config.Default.FakeHost()
	switch {
	case value == "", value == "lxc", fake:
	case slices.Contains(otherDrivers, driverName(value)):
		l.warnAt(defaultSection, "compute_driver", fmt.Sprintf("%q is another driver's name, ignored", value),
			"this agent runs LXC containers; remove the option")
	default:
		l.faultAt(defaultSection, "compute_driver", fmt.Sprintf("%q is no driver's name", value),
			"lxc, or remove the option, for containers; "+strings.Join(fakeDrivers(), ", ")+" for a host that starts nothing")
	}
}

func fakeDrivers() []string {
	names := make([]string, 0, len(fakeHosts))
	for _, f := range fakeHosts {
		names = append(names, f.Driver)
	}
	return names
}

// checkLXD tells of the options of nova-lxd, whose place this agent takes.
func (l *loader) checkLXD() {
	for _, f := range l.files {
		for _, e := range f.keys {
			if normalizeSection(e.section) == "lxd" {
				l.report.warn(Finding{
					File: f.name, Line: e.line, Section: "lxd", Option: e.key,
					Message: "option of nova-lxd, ignored", Remedy: "the agent's options are in [lxc]",
				})
			}
		}
	}
}

// driver says what runs the servers.
func (c *Config) driver() string {
	if f, ok := c.Default.FakeHost(); ok {
		return fmt.Sprintf("%s: no server is started; reports %d vCPUs, %d MiB, %d GB", f.Driver, f.VCPUs, f.MemoryMB, f.DiskGB)
	}
	return "lxc"
}
