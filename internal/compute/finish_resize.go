package compute

import (
	"context"
	"errors"
	"maps"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/compute/plugging"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// finishResize gives an instance its new flavor, on this host from now on
// (nova/compute/manager.py:finish_resize).
func (m *Manager) finishResize(ctx context.Context, mv *move) error {
	if err := m.loadMove(ctx, mv); err != nil {
		return err
	}
	if mv.resumed {
		if err := m.Conductor.RefreshInstance(ctx, mv.inst); err != nil {
			return err
		}
		if mv.inst.Host != m.opts.Host || mv.inst.TaskState != object.TaskStateResizeMigrated && mv.inst.TaskState != object.TaskStateResizeFinish {
			return nil
		}
	}
	err := m.finishSteps(ctx, mv)
	if err == nil || errors.Is(context.Cause(ctx), errDeleted) {
		return err
	}
	return m.finishFailed(context.WithoutCancel(ctx), mv, novaError(mv.inst, err))
}

func (m *Manager) finishSteps(ctx context.Context, mv *move) error {
	inst, wanted := mv.inst, mv.inst.NewFlavor
	if wanted == nil {
		wanted = inst.Flavor
	}
	old := inst.OldFlavor
	if old == nil {
		old = inst.Flavor
	}
	limits, err := m.limitsOf(ctx, inst.UUID, wanted)
	if err != nil {
		return err
	}
	info, ports, err := m.bindHere(ctx, mv)
	if err != nil {
		return err
	}
	defer ports.Cancel()
	changes := flavors(wanted, old, wanted)
	if wanted.ID != old.ID {
		maps.Copy(changes, sizes(wanted))
	}
	changes["task_state"] = object.TaskStateResizeFinish
	err = m.Conductor.SaveInstance(ctx, inst, changes, mv.expectTask(object.TaskStateResizeMigrated, object.TaskStateResizeFinish))
	if err != nil {
		return err
	}
	kept := old
	if !m.same(mv) {
		kept = nil
	}
	m.Tracker.Arrived(ctx, inst, mv.migration.UUID, kept)
	m.Notify.Instance(ctx, notify.Event{Action: "resize_finish", Phase: "start", Instance: inst, NetworkInfo: info, BDMs: noVolumes})
	if m.same(mv) {
		err = m.resizeHere(ctx, inst, old, wanted, limits)
	} else {
		err = m.arrive(ctx, mv, limits, info, ports)
	}
	if err == nil {
		err = m.saveMapping(ctx, inst.UUID, old, wanted)
	}
	if err == nil {
		err = m.saveSwap(ctx, inst.UUID, old, wanted)
	}
	if err != nil {
		return err
	}
	return m.finishSave(ctx, mv, info)
}

// finishSave makes the instance resized and says so.
func (m *Manager) finishSave(ctx context.Context, mv *move, info object.NetworkInfo) error {
	inst := mv.inst
	if err := m.saveMigration(ctx, mv, migrationFinished); err != nil {
		return err
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"vm_state": object.VMStateResized, "task_state": nil, "launched_at": object.Now(), "power_state": int(now),
	}, mv.expectTask(object.TaskStateResizeFinish))
	if err != nil {
		return err
	}
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst})
	})
	m.Notify.Instance(ctx, notify.Event{Action: "resize_finish", Phase: "end", Instance: inst, NetworkInfo: info, BDMs: noVolumes})
	return nil
}

// awaitPorts waits for Neutron as vif_plugging_timeout says. It does not fail the move: the guest is needed
// more than its network, which Neutron may bring later.
func (m *Manager) awaitPorts(ctx context.Context, ports *plugging.Ports) error {
	err := m.await(ctx, ports.Wait)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil { // the agent's end, too: the guest is not to stay down until its next start
		reqctx.Log(ctx).WithError(err).Error("ports of an instance that came here are not up; starting it all the same")
	}
	return nil
}

// bindHere binds the ports to this host and reads what came of it. The waits begin before: the
// event may come at any time after (nova/network/neutron.py:migrate_instance_finish).
func (m *Manager) bindHere(ctx context.Context, mv *move) (object.NetworkInfo, *plugging.Ports, error) {
	inst := mv.inst
	ports := m.ports(inst.UUID)
	if err := m.Conductor.RefreshInfoCache(ctx, inst); err != nil && !exception.Is(err, "NotFound") {
		return nil, ports, err
	}
	if !m.same(mv) {
		for _, id := range portIDs(inst.NetworkInfo()) {
			ports.Expect(id)
		}
		err := m.Neutron.BindToHost(ctx, neutron.BindRequest{
			InstanceUUID: inst.UUID, ProjectID: inst.ProjectID, AvailabilityZone: inst.AvailabilityZone, Host: m.opts.Host,
		})
		if err != nil {
			ports.Cancel()
			return nil, ports, networkError(inst, err)
		}
	}
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		ports.Cancel()
		return nil, ports, networkError(inst, err)
	}
	return info, ports, nil
}

// arrive starts an instance whose disks came from another host.
func (m *Manager) arrive(ctx context.Context, mv *move, limits flavor.Limits, info object.NetworkInfo, ports *plugging.Ports) error {
	rec, err := m.received(ctx, mv.inst.UUID)
	if err != nil {
		return err
	}
	return m.orOff(ctx, rec.UUID, func() error { return m.startArrived(ctx, mv, rec, limits, info, ports) })
}

func (m *Manager) startArrived(ctx context.Context, mv *move, rec record, limits flavor.Limits, info object.NetworkInfo, ports *plugging.Ports) error {
	inst := mv.inst
	if err := m.describeHere(ctx, inst, rec, limits); err != nil {
		return err
	}
	bdms, err := m.mappings(ctx, inst.UUID, inst.Flavor)
	if err != nil {
		return err
	}
	again := newSpawn(m, &buildRequest{Instance: inst, Image: mv.image, BDMs: bdms})
	again.rec = rec
	if err := again.writeConfigDrive(ctx); err != nil {
		return err
	}
	rec.setVIFs(vifsOfInfo(inst.UUID, info))
	rec.Incoming = nil
	if err := m.saveRecord(rec); err != nil {
		return err
	}
	if stateBefore(inst) == object.VMStateStopped {
		return m.unmountDisks(ctx, inst.UUID)
	}
	for _, v := range rec.VIFs {
		if _, err := ports.Plug(ctx, v); err != nil {
			return err
		}
	}
	if err := m.awaitPorts(ctx, ports); err != nil {
		return err
	}
	return m.runRecorded(ctx, rec)
}

// finishFailed puts the instance into error where it is; nothing goes back by itself
// (nova/compute/manager.py:_finish_resize_helper).
func (m *Manager) finishFailed(ctx context.Context, mv *move, cause error) error {
	if isGone(cause) || exception.Is(cause, "UnexpectedTaskStateError") {
		return cause
	}
	inst := mv.inst
	if old := inst.OldFlavor; old != nil && inst.Flavor != nil && inst.Flavor.ID != old.ID {
		changes := flavors(old, old, inst.NewFlavor)
		maps.Copy(changes, sizes(old))
		if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("old flavor not stored")
		}
	}
	m.dropAllocation(ctx, mv)
	return m.failMove(ctx, mv, cause)
}
