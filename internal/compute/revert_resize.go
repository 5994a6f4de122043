package compute

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// revertResize removes an instance from the host that it came to, which is this one, and tells the
// source to take it back (nova/compute/manager.py:revert_resize).
func (m *Manager) revertResize(ctx context.Context, mv *move) error {
	if err := m.loadMove(ctx, mv); err != nil {
		return err
	}
	if err := m.revertible(ctx, mv); err != nil {
		return m.refuseRevert(ctx, mv, err)
	}
	err := m.revertSteps(ctx, mv)
	if err != nil {
		return m.failMove(context.WithoutCancel(ctx), mv, novaError(mv.inst, err))
	}
	return nil
}

// revertible looks whether the disks, which grew in place, can become as small again.
func (m *Manager) revertible(ctx context.Context, mv *move) error {
	if !m.same(mv) || mv.inst.OldFlavor == nil {
		return nil
	}
	rec, ok, err := m.record(mv.inst.UUID)
	if err != nil || !ok {
		return err
	}
	old := mv.inst.OldFlavor
	disks, err := m.disksUnder(ctx, mv.inst.UUID, grownFrom(mv.inst, old), old, rec.Ephemeral)
	if err == nil {
		err = m.checkShrink(ctx, rec, disks)
	}
	if err != nil {
		return err
	}
	limits, err := m.limitsOf(ctx, mv.inst.UUID, old)
	if err != nil || rec.Root.SizeGB == limits.RootGB {
		return err
	}
	used, err := m.usedBytes(ctx, rec.Root, false)
	if err != nil {
		return err
	}
	return checkRoom("the root disk", used, limits.RootGB)
}

// refuseRevert leaves the server resized, so that its owner can make room or confirm.
func (m *Manager) refuseRevert(ctx context.Context, mv *move, cause error) error {
	err := m.saveMigration(ctx, mv, migrationFinished)
	saveErr := m.Conductor.SaveInstance(ctx, mv.inst, map[string]any{"vm_state": object.VMStateResized, "task_state": nil},
		conductor.ExpectTask(object.TaskStateResizeReverting))
	if err := errors.Join(err, saveErr); err != nil {
		reqctx.Log(ctx).WithError(err).Error("state of a revert that was refused not stored")
	}
	return &failedMove{cause}
}

func (m *Manager) revertSteps(ctx context.Context, mv *move) error {
	inst := mv.inst
	m.notifyExists(ctx, inst)
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Warning("info cache not refreshed")
		info = inst.NetworkInfo()
	}
	// Nothing is removed for an instance that is being deleted, or that somebody else has.
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStateResizeReverting},
		conductor.ExpectTask(object.TaskStateResizeReverting))
	if err != nil {
		return err
	}
	if !m.same(mv) {
		if err := m.Neutron.ActivateBindings(ctx, portIDs(info), mv.migration.SourceCompute); err != nil {
			return networkError(inst, err)
		}
		if err := m.removeFromHost(ctx, inst.UUID); err != nil {
			return err
		}
		m.Tracker.Forget(ctx, inst.UUID)
	}
	if err := m.saveMigration(ctx, mv, migrationReverted); err != nil {
		return err
	}
	return m.castMove(ctx, mv.migration.SourceCompute, true, "finish_revert_resize", mv, nil, "request_spec")
}

// finishRevertResize takes an instance back to this host, as it was before
// (nova/compute/manager.py:finish_revert_resize).
func (m *Manager) finishRevertResize(ctx context.Context, mv *move) error {
	if err := m.loadMove(ctx, mv); err != nil {
		return err
	}
	if mv.resumed {
		if err := m.Conductor.RefreshInstance(ctx, mv.inst); err != nil {
			return err
		}
		if mv.inst.TaskState != object.TaskStateResizeReverting {
			return nil
		}
	}
	err := m.finishRevertSteps(ctx, mv)
	if err != nil {
		return m.failMove(context.WithoutCancel(ctx), mv, novaError(mv.inst, err))
	}
	return m.forgetFlavors(ctx, mv.inst)
}

func (m *Manager) finishRevertSteps(ctx context.Context, mv *move) error {
	inst := mv.inst
	m.Notify.Instance(ctx, notify.Event{Action: "resize_revert", Phase: "start", Instance: inst, BDMs: noVolumes})
	old := inst.OldFlavor
	if old == nil {
		old = inst.Flavor
	}
	changes := flavors(old, inst.OldFlavor, inst.NewFlavor)
	maps.Copy(changes, sizes(old))
	here := m.Tracker.Ownership()
	delete(here, "launched_on")
	maps.Copy(changes, here)
	err := m.Conductor.SaveInstance(ctx, inst, changes, conductor.ExpectTask(object.TaskStateResizeReverting))
	if err != nil {
		return err
	}
	m.Tracker.Arrived(ctx, inst, mv.migration.UUID, nil)
	m.revertAllocation(ctx, mv)
	limits, err := m.limitsOf(ctx, inst.UUID, old)
	if err != nil {
		return err
	}
	if err := m.takeBack(ctx, mv, old, limits); err != nil {
		return err
	}
	if err := m.saveMapping(ctx, inst.UUID, grownFrom(inst, old), old); err != nil {
		return err
	}
	if err := m.saveSwap(ctx, inst.UUID, inst.NewFlavor, old); err != nil {
		return err
	}
	if err := m.Conductor.DropMigrationContext(ctx, inst); err != nil {
		return err
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"launched_at": object.Now(), "power_state": int(now), "vm_state": stateBefore(inst), "task_state": nil,
	}, conductor.ExpectTask(object.TaskStateResizeReverting))
	if err != nil {
		return err
	}
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst})
	})
	m.Notify.Instance(ctx, notify.Event{Action: "resize_revert", Phase: "end", Instance: inst, BDMs: noVolumes})
	return nil
}

// takeBack gives the instance its ports, limits and disks of before.
func (m *Manager) takeBack(ctx context.Context, mv *move, old *object.Flavor, limits flavor.Limits) error {
	inst := mv.inst
	if m.same(mv) {
		if _, err := m.refreshNetworkInfo(ctx, inst); err != nil {
			return networkError(inst, err)
		}
		return m.resizeBack(ctx, inst, old, limits)
	}
	info, ports, err := m.bindHere(ctx, mv)
	if err != nil {
		return err
	}
	defer ports.Cancel()
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return errors.Join(err, exception.InstanceNotFound(inst.UUID))
	}
	rec.setVIFs(vifsOfInfo(inst.UUID, info))
	if err := m.saveRecord(rec); err != nil {
		return err
	}
	for _, v := range rec.VIFs {
		if _, err := ports.Plug(ctx, v); err != nil {
			return err
		}
	}
	if stateBefore(inst) == object.VMStateStopped {
		return nil
	}
	if err := m.awaitPorts(ctx, ports); err != nil {
		return err
	}
	return m.runRecorded(ctx, rec)
}

// resizeBack undoes a resize on the same host. Disks that grew become small again while the guest is off.
func (m *Manager) resizeBack(ctx context.Context, inst *object.Instance, old *object.Flavor, limits flavor.Limits) error {
	if err := m.changeShares(ctx, inst, old, limits); err != nil {
		return err
	}
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return errors.Join(err, exception.InstanceNotFound(inst.UUID))
	}
	disks, err := m.disksUnder(ctx, inst.UUID, grownFrom(inst, old), old, rec.Ephemeral)
	if err != nil {
		return err
	}
	state, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	if err := m.noteFlavor(inst.UUID, old.Name); err != nil {
		return err
	}
	rec.Flavor = old.Name
	stopped := isOff(state) && stateBefore(inst) == object.VMStateStopped
	// One that is off and should not be was stopped here, by an attempt that was cut off.
	if rec.Root.SizeGB == limits.RootGB && slices.Equal(disks, rec.Ephemeral) && (stopped || !isOff(state)) {
		return m.setLimits(ctx, inst, limits)
	}
	if err := m.powerOff(ctx, inst.UUID, m.shutdownTimeout(inst)); err != nil {
		return err
	}
	var shrinkErr error
	if rec.Root.SizeGB != limits.RootGB {
		shrinkErr = m.shrinkRoot(ctx, rec, limits.RootGB)
	}
	shrinkErr = errors.Join(shrinkErr, m.shrinkDisks(ctx, inst, disks, limits))
	if err := m.setLimits(ctx, inst, limits); err != nil {
		return errors.Join(shrinkErr, err)
	}
	if !stopped {
		if rec, _, err = m.record(inst.UUID); err != nil {
			return err
		}
		return errors.Join(shrinkErr, m.runRecorded(ctx, rec))
	}
	return shrinkErr
}
