// Package diagnostics puts what is known about a running guest into the two forms of the API's server diagnostics, and
// into measurements for Prometheus.
package diagnostics

import (
	"cmp"
	"path"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/vif"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// driverName is the only driver of a Linux host that Diagnostics.driver may name
// (nova/objects/fields.py:HypervisorDriver); the field hypervisor says what it is really.
const driverName = "libvirt"

// Guest is what is known about a running guest.
type Guest struct {
	Instance *object.Instance
	Info     driver.Info
	Usage    driver.Usage
	NICs     []NIC
}

// NIC is what is known about a port.
type NIC struct {
	Device   string // of the host
	MAC      string
	Counters *vif.Counters // nil: not counted
}

func (g *Guest) vcpus() int { return max(g.Instance.VCPUs, 1) }

// cpuTime is each vcpu's part: a container's vcpus are a share of time on any of the
// host's CPUs, and the kernel counts them together.
func (g *Guest) cpuTime() int64 { return int64(g.Usage.CPUTime) / int64(g.vcpus()) }

// Legacy answers microversions below 2.48 with the free-form keys that nova's
// libvirt driver uses (nova/virt/libvirt/driver.py:get_diagnostics): memory in KiB.
func (g *Guest) Legacy() map[string]any {
	out := map[string]any{
		"memory":         int64(g.Instance.MemoryMB) * kib,
		"memory-actual":  int64(g.Instance.MemoryMB) * kib,
		"memory-rss":     g.Usage.MemoryUsed / kib,
		"memory-cache":   g.Usage.MemoryCache / kib,
		"memory-swap":    g.Usage.SwapUsed / kib,
		"processes":      g.Usage.Processes,
		"uptime_seconds": g.uptime(),
	}
	for n := range g.vcpus() {
		out["cpu"+strconv.Itoa(n)+"_time"] = g.cpuTime()
	}
	disk := path.Base(cmp.Or(g.Instance.RootDeviceName, object.DefaultRootDevice))
	out[disk+"_read"], out[disk+"_read_req"] = g.Usage.ReadBytes, g.Usage.ReadRequests
	out[disk+"_write"], out[disk+"_write_req"] = g.Usage.WriteBytes, g.Usage.WriteRequests
	out[disk+"_errors"] = int64(0)
	for _, nic := range g.NICs {
		if nic.Counters == nil {
			continue
		}
		c, name := nic.Counters, nic.Device
		out[name+"_rx"], out[name+"_rx_packets"], out[name+"_rx_errors"], out[name+"_rx_drop"] = c.RxBytes, c.RxPackets, c.RxErrors, c.RxDropped
		out[name+"_tx"], out[name+"_tx_packets"], out[name+"_tx_errors"], out[name+"_tx_drop"] = c.TxBytes, c.TxPackets, c.TxErrors, c.TxDropped
	}
	return out
}

func (g *Guest) uptime() int {
	if g.Info.StartedAt.IsZero() {
		return 0
	}
	return int(time.Since(g.Info.StartedAt) / time.Second)
}

// Object answers microversions from 2.48 on, in the versions of objects that the release has (nova/virt/libvirt/driver.py:get_instance_diagnostics).
func (g *Guest) Object(r release.Release, hypervisor string) (*object.Diagnostics, error) {
	b := builder{version: r.ObjectVersion}
	linux, uptime := "linux", g.uptime()
	used := int(g.Usage.MemoryUsed / mib)
	out := &object.Diagnostics{
		Header: b.header("Diagnostics"), State: g.Info.PowerState.String(), Driver: driverName, Hypervisor: hypervisor, HypervisorOS: linux,
		Uptime: &uptime, ConfigDrive: g.Instance.ConfigDrive != "",
		MemoryDetails: &object.MemoryDiagnostics{Header: b.header("MemoryDiagnostics"), Maximum: &g.Instance.MemoryMB, Used: &used},
		NumCPUs:       g.vcpus(), NumNICs: len(g.NICs), NumDisks: 1,
	}
	b.mark(out.MemoryDetails)
	for id := range g.vcpus() {
		spent := g.cpuTime()
		cpu := &object.CPUDiagnostics{Header: b.header("CpuDiagnostics"), ID: &id, Time: &spent}
		b.mark(cpu)
		out.CPUDetails = append(out.CPUDetails, cpu)
	}
	out.NICDetails = b.nics(g.NICs)
	u := g.Usage
	disk := &object.DiskDiagnostics{
		Header: b.header("DiskDiagnostics"), ReadBytes: &u.ReadBytes, ReadRequests: &u.ReadRequests, WriteBytes: &u.WriteBytes, WriteRequests: &u.WriteRequests,
	}
	b.mark(disk)
	out.DiskDetails = []*object.DiskDiagnostics{disk}
	b.mark(out)
	return out, b.err
}

// builder makes objects of the release's versions with all of their fields set.
type builder struct {
	version func(class string) string
	err     error // the first
}

func (b *builder) header(class string) object.Header {
	return object.New(class, b.version(class))
}

func (b *builder) mark(o object.Object) {
	if err := object.Mark(o); err != nil && b.err == nil {
		b.err = err
	}
}

func (b *builder) nics(nics []NIC) []*object.NICDiagnostics {
	out := make([]*object.NICDiagnostics, 0, len(nics))
	for _, nic := range nics {
		o := &object.NICDiagnostics{Header: b.header("NicDiagnostics"), MACAddress: nic.MAC}
		if c := nic.Counters; c != nil {
			o.RxOctets, o.RxPackets, o.RxErrors, o.RxDrop = &c.RxBytes, &c.RxPackets, &c.RxErrors, &c.RxDropped
			o.TxOctets, o.TxPackets, o.TxErrors, o.TxDrop = &c.TxBytes, &c.TxPackets, &c.TxErrors, &c.TxDropped
		}
		b.mark(o)
		out = append(out, o)
	}
	return out
}
