package compute

import (
	"context"
	"path"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/vif"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// diagnosticsDriver is the only driver of a Linux host that Diagnostics.driver may name
// (nova/objects/fields.py:HypervisorDriver); the field hypervisor says what it is really.
const diagnosticsDriver = "libvirt"

// diagnosis is what is known about a running guest.
type diagnosis struct {
	info  driver.Info
	usage driver.Usage
	vcpus int
	nics  []diagnosedNIC
}

type diagnosedNIC struct {
	device, mac string
	counters    *vif.Counters // nil: not counted
}

// diagnose looks at a guest, which must run (nova/compute/manager.py:get_diagnostics).
func (m *Manager) diagnose(ctx context.Context, inst *object.Instance) (diagnosis, error) {
	info, err := m.Driver.Info(ctx, inst.UUID)
	if err != nil || info.PowerState != driver.PowerStateRunning {
		state := driver.PowerState(inst.PowerState).String()
		return diagnosis{}, exception.InstanceInvalidState(inst.UUID, "power state", state, "get_diagnostics").Because(err)
	}
	inspector, ok := m.Driver.(driver.Inspector)
	if !ok {
		return diagnosis{}, driver.ErrUnsupported
	}
	d := diagnosis{info: info, vcpus: max(inst.VCPUs, 1)}
	if d.usage, err = inspector.Usage(ctx, inst.UUID); err != nil {
		return diagnosis{}, err
	}
	rec, _, err := m.record(inst.UUID)
	if err != nil {
		return diagnosis{}, err
	}
	for _, v := range rec.VIFs {
		nic := diagnosedNIC{device: v.HostDevice(), mac: v.MAC}
		if c, err := v.Counters(); err == nil {
			nic.counters = &c
		} else {
			reqctx.Log(ctx).WithField("port_id", v.PortID).WithError(err).Debug("port not counted")
		}
		d.nics = append(d.nics, nic)
	}
	return d, nil
}

// cpuTime is each vcpu's part: a container's vcpus are a share of time on any of the
// host's CPUs, and the kernel counts them together.
func (d *diagnosis) cpuTime() int64 { return int64(d.usage.CPUTime) / int64(d.vcpus) }

// legacyDiagnostics answers microversions below 2.48 with the free-form keys that nova's
// libvirt driver uses (nova/virt/libvirt/driver.py:get_diagnostics): memory in KiB.
func (m *Manager) legacyDiagnostics(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	d, err := m.diagnose(ctx, inst)
	if err != nil {
		return nil, err
	}
	out := map[string]any{
		"memory":         int64(inst.MemoryMB) * kib,
		"memory-actual":  int64(inst.MemoryMB) * kib,
		"memory-rss":     d.usage.MemoryUsed / kib,
		"memory-cache":   d.usage.MemoryCache / kib,
		"memory-swap":    d.usage.SwapUsed / kib,
		"processes":      d.usage.Processes,
		"uptime_seconds": d.uptime(),
	}
	for n := range d.vcpus {
		out["cpu"+strconv.Itoa(n)+"_time"] = d.cpuTime()
	}
	disk := path.Base(inst.RootDeviceName)
	if inst.RootDeviceName == "" {
		disk = "sda" // nova/block_device.py:DEFAULT_ROOT_DEV_NAME
	}
	out[disk+"_read"], out[disk+"_read_req"] = d.usage.ReadBytes, d.usage.ReadRequests
	out[disk+"_write"], out[disk+"_write_req"] = d.usage.WriteBytes, d.usage.WriteRequests
	out[disk+"_errors"] = int64(0)
	for _, nic := range d.nics {
		if nic.counters == nil {
			continue
		}
		c, name := nic.counters, nic.device
		out[name+"_rx"], out[name+"_rx_packets"], out[name+"_rx_errors"], out[name+"_rx_drop"] = c.RxBytes, c.RxPackets, c.RxErrors, c.RxDropped
		out[name+"_tx"], out[name+"_tx_packets"], out[name+"_tx_errors"], out[name+"_tx_drop"] = c.TxBytes, c.TxPackets, c.TxErrors, c.TxDropped
	}
	return out, nil
}

func (d *diagnosis) uptime() int {
	if d.info.StartedAt.IsZero() {
		return 0
	}
	return int(time.Since(d.info.StartedAt) / time.Second)
}

// instanceDiagnostics answers microversions from 2.48 on (nova/virt/libvirt/driver.py:get_instance_diagnostics).
func (m *Manager) instanceDiagnostics(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	d, err := m.diagnose(ctx, inst)
	if err != nil {
		return nil, err
	}
	b := diagnosticsBuilder{version: m.Release.ObjectVersion}
	hypervisor, _ := m.Driver.Version()
	linux, uptime := "linux", d.uptime()
	used := int(d.usage.MemoryUsed / mib)
	out := &object.Diagnostics{
		Header: b.header("Diagnostics"), State: d.info.PowerState.String(), Driver: diagnosticsDriver, Hypervisor: hypervisor, HypervisorOS: linux,
		Uptime: &uptime, ConfigDrive: inst.ConfigDrive != "",
		MemoryDetails: &object.MemoryDiagnostics{Header: b.header("MemoryDiagnostics"), Maximum: &inst.MemoryMB, Used: &used},
		NumCPUs:       d.vcpus, NumNICs: len(d.nics), NumDisks: 1,
	}
	b.mark(out.MemoryDetails)
	for id := range d.vcpus {
		spent := d.cpuTime()
		cpu := &object.CPUDiagnostics{Header: b.header("CpuDiagnostics"), ID: &id, Time: &spent}
		b.mark(cpu)
		out.CPUDetails = append(out.CPUDetails, cpu)
	}
	out.NICDetails = b.nics(d.nics)
	u := d.usage
	disk := &object.DiskDiagnostics{
		Header: b.header("DiskDiagnostics"), ReadBytes: &u.ReadBytes, ReadRequests: &u.ReadRequests, WriteBytes: &u.WriteBytes, WriteRequests: &u.WriteRequests,
	}
	b.mark(disk)
	out.DiskDetails = []*object.DiskDiagnostics{disk}
	b.mark(out)
	return out, b.err
}

// diagnosticsBuilder makes objects of the release's versions with all of their fields set.
type diagnosticsBuilder struct {
	version func(class string) string
	err     error // the first
}

func (b *diagnosticsBuilder) header(class string) object.Header {
	return object.New(class, b.version(class))
}

func (b *diagnosticsBuilder) mark(o object.Object) {
	if err := object.Mark(o); err != nil && b.err == nil {
		b.err = err
	}
}

func (b *diagnosticsBuilder) nics(nics []diagnosedNIC) []*object.NICDiagnostics {
	out := make([]*object.NICDiagnostics, 0, len(nics))
	for _, nic := range nics {
		o := &object.NICDiagnostics{Header: b.header("NicDiagnostics"), MACAddress: nic.mac}
		if c := nic.counters; c != nil {
			o.RxOctets, o.RxPackets, o.RxErrors, o.RxDrop = &c.RxBytes, &c.RxPackets, &c.RxErrors, &c.RxDropped
			o.TxOctets, o.TxPackets, o.TxErrors, o.TxDrop = &c.TxBytes, &c.TxPackets, &c.TxErrors, &c.TxDropped
		}
		b.mark(o)
		out = append(out, o)
	}
	return out
}
