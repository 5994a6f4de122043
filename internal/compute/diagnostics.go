package compute

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/compute/diagnostics"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// legacyDiagnostics answers microversions below 2.48.
func (m *Manager) legacyDiagnostics(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	guest, err := m.diagnose(ctx, inst)
	if err != nil {
		return nil, err
	}
	return guest.Legacy(), nil
}

// instanceDiagnostics answers microversions from 2.48 on.
func (m *Manager) instanceDiagnostics(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	guest, err := m.diagnose(ctx, inst)
	if err != nil {
		return nil, err
	}
	hypervisor, _ := m.Driver.Version()
	return guest.Object(m.Release, hypervisor)
}

// InstanceMetrics measures the instances of this host, by the agent's own records. nil: the driver does not measure.
func (m *Manager) InstanceMetrics() prometheus.Collector {
	sampler, ok := m.Driver.(driver.Sampler)
	if !ok {
		return nil
	}
	return diagnostics.NewCollector(m.labelled, sampler)
}

func (m *Manager) labelled() ([]diagnostics.Labelled, error) {
	records, _, err := state.ListReadable[record](m.DB, recordBucket)
	if err != nil {
		return nil, err
	}
	all := make([]diagnostics.Labelled, 0, len(records))
	for _, r := range records {
		if r.Incoming == nil { // else it is another host's still
			all = append(all, diagnostics.Labelled{UUID: r.UUID, Name: r.Name, Project: r.Project, Flavor: r.Flavor, VIFs: r.VIFs})
		}
	}
	return all, nil
}

// diagnose looks at a guest, which must run (nova/compute/manager.py:get_diagnostics).
func (m *Manager) diagnose(ctx context.Context, inst *object.Instance) (*diagnostics.Guest, error) {
	info, err := m.Driver.Info(ctx, inst.UUID)
	if err != nil || info.PowerState != driver.PowerStateRunning {
		state := driver.PowerState(inst.PowerState).String()
		return nil, exception.InstanceInvalidState(inst.UUID, "power state", state, "get_diagnostics").Because(err)
	}
	inspector, ok := m.Driver.(driver.Inspector)
	if !ok {
		return nil, driver.ErrUnsupported
	}
	g := &diagnostics.Guest{Instance: inst, Info: info}
	if g.Usage, err = inspector.Usage(ctx, inst.UUID); err != nil {
		return nil, err
	}
	rec, _, err := m.record(inst.UUID)
	if err != nil {
		return nil, err
	}
	for _, v := range rec.VIFs {
		nic := diagnostics.NIC{Device: v.HostDevice(), MAC: v.MAC}
		if c, err := v.Counters(); err == nil {
			nic.Counters = &c
		} else {
			reqctx.Log(ctx).WithField("port_id", v.PortID).WithError(err).Debug("port not counted")
		}
		g.NICs = append(g.NICs, nic)
	}
	return g, nil
}
