package compute

import (
	"context"
	"errors"
	"maps"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// confirmResize removes what a move left on its source, which is this host
// (nova/compute/manager.py:confirm_resize).
func (m *Manager) confirmResize(ctx context.Context, mv *move) error {
	inst, err := m.Conductor.InstanceByUUID(ctx, mv.inst.UUID, "metadata", "system_metadata", "flavor", "info_cache")
	if exception.Is(err, "InstanceNotFound") {
		return m.removeMoved(ctx, mv)
	}
	if err != nil {
		return err
	}
	mv.inst = inst
	if inst.VMState != object.VMStateResized {
		reqctx.Log(ctx).WithField("vm_state", inst.VMState).Info("resize is confirmed already")
		return nil
	}
	err = m.confirmSteps(ctx, mv)
	if err != nil {
		err = m.failMove(context.WithoutCancel(ctx), mv, novaError(inst, err))
	}
	// nova-compute gives the source's resources free whatever became of the rest.
	m.dropAllocation(context.WithoutCancel(ctx), mv)
	if err != nil {
		return err
	}
	return m.forgetFlavors(ctx, inst)
}

func (m *Manager) confirmSteps(ctx context.Context, mv *move) error {
	inst := mv.inst
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Warning("info cache not refreshed")
		info = inst.NetworkInfo()
	}
	m.Notify.Instance(ctx, notify.Event{Action: "resize_confirm", Phase: "start", Instance: inst})
	if err := m.removeMoved(ctx, mv); err != nil {
		return err
	}
	if err := m.saveMigration(ctx, mv, migrationConfirmed); err != nil {
		return err
	}
	m.Tracker.DropMove(ctx, mv.migration.UUID)
	if err := m.Conductor.DropMigrationContext(ctx, inst); err != nil {
		return err
	}
	state := object.VMStateActive
	if inst.PowerState == int(driver.PowerStateShutdown) {
		state = object.VMStateStopped
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": state, "task_state": nil},
		conductor.ExpectTask("", object.TaskStateDeleting, object.TaskStateSoftDeleting))
	if err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "resize_confirm", Phase: "end", Instance: inst, NetworkInfo: info})
	if !m.same(mv) {
		m.tellScheduler(ctx, func(ctx context.Context) error { return m.Conductor.DeleteInstanceInfo(ctx, m.opts.Host, inst.UUID) })
	}
	return nil
}

// removeMoved removes what is left on this host of an instance that went to another one.
func (m *Manager) removeMoved(ctx context.Context, mv *move) error {
	if m.same(mv) {
		return nil // what is here is the server
	}
	if mv.inst.Host == m.opts.Host {
		return errors.New("the server is on this host: nothing of it is removed")
	}
	return m.removeFromHost(ctx, mv.inst.UUID)
}

// forgetFlavors ends the memory of a move.
func (m *Manager) forgetFlavors(ctx context.Context, inst *object.Instance) error {
	changes := flavors(inst.Flavor, nil, nil)
	system := maps.Clone(inst.SystemMetadata)
	delete(system, oldVMState)
	changes["system_metadata"] = system
	err := m.Conductor.SaveInstance(ctx, inst, changes)
	if isGone(err) {
		return nil
	}
	return err
}
