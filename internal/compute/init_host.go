package compute

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
)

// buildTasks are the task states of a build under way.
var buildTasks = []string{
	object.TaskStateScheduling, object.TaskStateNetworking, object.TaskStateBlockDeviceMapping, object.TaskStateSpawning,
}

// rebuildTasks are the task states of a rebuild under way.
var rebuildTasks = []string{object.TaskStateRebuilding, object.TaskStateRebuildBlockDeviceMapping, object.TaskStateRebuildSpawning}

// parallelSettles is how many instances are settled at once after a start: a host of some
// hundred guests must not flood the conductor.
const parallelSettles = 8

// InitHost brings this host and Nova's view of it together after a start of the agent
// (nova/compute/manager.py:init_host). It touches no guest that runs as it should. What
// takes long goes on in the background; call it once, before messages are consumed.
//
// When it returns, every instance that is to be settled is locked: what messages ask of it
// waits until it is.
func (m *Manager) InitHost(ctx context.Context) error {
	ctx = adminContext(ctx)
	instances, err := m.Conductor.InstancesByHost(ctx, m.opts.Host, "info_cache", "metadata", "system_metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list this host's instances: %w", err)
	}
	if len(instances) > 0 {
		m.tellScheduler(ctx, func(ctx context.Context) error {
			return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, instances)
		})
	}
	evacuated, err := m.destroyEvacuated(ctx)
	if err != nil {
		return err
	}
	resumed, interrupted, err := m.resumeJournal(ctx)
	if err != nil {
		return err
	}
	maps.Copy(resumed, evacuated)
	m.background(ctx, func(ctx context.Context) {
		if err := m.settleArrivals(ctx); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("root disks on their way here not looked at; the next turn of cleanup_incomplete_migrations does it")
		}
	})
	known, err := m.settleInstances(ctx, instances, interrupted, resumed)
	if err != nil {
		return err
	}
	if err := m.resumeElsewhere(ctx, interrupted, known); err != nil {
		return err
	}
	m.background(ctx, func(ctx context.Context) {
		m.removeLeftovers(ctx, known)
		if err := m.failLostBuilds(ctx, known); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("builds that an earlier stop lost not looked for")
		}
	})
	return nil
}

// settleInstances settles the instances of this host, but for those that somebody works on already, and those whose
// operation was interrupted with it. It returns the UUIDs of all of them.
func (m *Manager) settleInstances(
	ctx context.Context, instances []*object.Instance, interrupted map[string]journal.Entry, busy map[string]bool,
) (map[string]bool, error) {
	known := make(map[string]bool, len(instances))
	slots := semaphore.NewWeighted(parallelSettles)
	for _, inst := range instances {
		known[inst.UUID] = true
		if inst.Host != m.opts.Host || busy[inst.UUID] {
			continue
		}
		settle := m.settleInstance
		if entry, ok := interrupted[inst.UUID]; ok {
			settle = func(ctx context.Context, inst *object.Instance) error { return m.settleInterrupted(ctx, inst, entry) }
		}
		unlock, err := m.locks.Lock(ctx, inst.UUID)
		if err != nil {
			return nil, err
		}
		m.background(reqctx.WithField(ctx, "instance", inst.UUID), func(ctx context.Context) {
			defer unlock()
			if slots.Acquire(ctx, 1) != nil {
				return // never: the context has no end
			}
			defer slots.Release(1)
			if err := protect(ctx, func() error { return settle(ctx, inst) }); err != nil && !errors.Is(err, errLeaving) {
				reqctx.Log(ctx).WithError(err).Error("instance not settled after the start")
			}
		})
	}
	return known, nil
}

// settleInstance settles one instance that an earlier stop of the agent may have left in the
// middle of something (nova/compute/manager.py:_init_instance). The caller holds its lock.
func (m *Manager) settleInstance(ctx context.Context, inst *object.Instance) error {
	log := reqctx.Log(ctx).WithField("vm_state", inst.VMState).WithField("task_state", inst.TaskState)
	save := func(changes map[string]any) error { return m.Conductor.SaveInstance(ctx, inst, changes) }
	switch {
	case leavingNova(inst):
		log.Info("completing a deletion")
		return m.complete(ctx, inst, m.deletion(nil))
	case inst.VMState == object.VMStateSoftDelete && inst.TaskState == object.TaskStateNone,
		inst.VMState == object.VMStateError:
		return nil
	case inst.VMState == object.VMStateBuilding,
		slices.Contains(buildTasks, inst.TaskState) && inst.VMState != object.VMStateShelvedOffloaded:
		log.Warning("a build was interrupted of which nothing is known; putting the instance into error")
		m.endOpenEvents(ctx, inst.UUID, buildEvent, errCutOff)
		return save(map[string]any{"vm_state": object.VMStateError, "task_state": nil})
	}
	if err := m.settlePortChange(ctx, inst); err != nil {
		log.WithError(err).Error("change of the ports that the agent's last stop interrupted not settled; the next start tries again")
	}
	if inst.TaskState == object.TaskStateResizeMigrating {
		log.Warning("a move broke off; the guest goes on here")
		m.endOpenEvents(ctx, inst.UUID, "resize_instance", errCutOff)
		return m.completeMigrating(ctx, inst)
	}
	if c, ok := m.completions()[inst.TaskState]; ok {
		if changed, err := m.taskChanged(ctx, inst); err != nil || changed {
			return err
		}
		log.Info("completing an operation that the agent's last stop interrupted")
		return m.complete(ctx, inst, c)
	}
	if slices.Contains(rebuildTasks, inst.TaskState) {
		log.Warning("a rebuild was interrupted of which nothing is known; putting the instance into error")
		m.endOpenEvents(ctx, inst.UUID, "rebuild_instance", errCutOff)
		return save(map[string]any{"vm_state": object.VMStateError, "task_state": nil})
	}
	if movesOn(inst.TaskState) {
		return nil
	}
	if inst.TaskState != object.TaskStateNone {
		if err := m.clearInterrupted(ctx, inst); err != nil {
			return err
		}
		log.Warning("resetting the task of an operation that the agent's last stop interrupted")
		if inst.TaskState == object.TaskStateUpdatingPassword { // the others are in the journal, unless it could not be written or read
			m.endOpenEvents(ctx, inst.UUID, "set_admin_password", errCutOff)
		}
		if err := save(map[string]any{"task_state": nil}); err != nil {
			return err
		}
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	return m.restore(ctx, inst, now)
}

// restore repairs the wiring of an instance and, after a reboot of the host, starts it
// again if the operator wants that.
func (m *Manager) restore(ctx context.Context, inst *object.Instance, now driver.PowerState) error {
	rec, ok, err := m.record(inst.UUID)
	if errors.Is(err, state.ErrDamaged) {
		return m.failDamaged(ctx, inst, err)
	}
	if err != nil {
		return err
	}
	if !ok {
		reqctx.Log(ctx).Warning("this host has no record of an instance that nova places here")
		return nil
	}
	if rec.Project == "" && inst.ProjectID != "" { // the record of an agent that did not keep it
		rec.describe(inst)
		if err := m.saveRecord(rec); err != nil {
			return err
		}
	}
	// The store's references are not written through: a crash of the host may have lost them.
	if err := m.Images.Acquire(rec.ImageID, inst.UUID); err != nil && !errors.Is(err, imagesync.ErrNotFound) {
		return err
	}
	for _, v := range rec.VIFs {
		if err := m.plugLive(ctx, &rec, v, !isOff(now)); err != nil {
			reqctx.Log(ctx).WithField("port_id", v.PortID).WithError(err).Error("port not plugged; putting the instance into error")
			return m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil})
		}
	}
	if again, err := m.rebootsItself(ctx, inst); again {
		return err
	}
	wasRunning := inst.VMState == object.VMStateActive && inst.PowerState == int(driver.PowerStateRunning)
	if isOff(now) && wasRunning && m.opts.ResumeGuestsOnHostBoot {
		reqctx.Log(ctx).Info("starting a guest that ran before the host's reboot")
		if err := m.runRecorded(ctx, rec); err != nil {
			return errors.Join(err, m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil}))
		}
		return nil
	}
	return m.syncPowerState(ctx, inst, now)
}

// failDamaged puts an instance into error whose record cannot be read: nothing can be done with it here but a delete or a rebuild by
// hand. Its guest, if it runs, runs on.
func (m *Manager) failDamaged(ctx context.Context, inst *object.Instance, damage error) error {
	reqctx.Log(ctx).WithError(damage).Error("record of an instance is damaged; putting the instance into error")
	m.recordFault(ctx, inst, damage)
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil})
}

// removeLeftovers clears what is on this host for instances that Nova no longer has here:
// builds that a crash cut off after their journal entry ended, deletions done while the
// agent was away. An instance that moved is not ours to judge and is left alone.
func (m *Manager) removeLeftovers(ctx context.Context, known map[string]bool) {
	local, err := m.localInstances(ctx)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("leftovers not looked for")
		return
	}
	for uuid := range local {
		if known[uuid] {
			continue
		}
		ctx := reqctx.WithField(ctx, "instance", uuid)
		if err := m.ifNotBuilding(ctx, uuid, m.removeLeftover); err != nil {
			reqctx.Log(ctx).WithError(err).Error("leftover not removed")
		}
	}
}

// ifNotBuilding does something about an instance under its lock, unless it is being built.
func (m *Manager) ifNotBuilding(ctx context.Context, uuid string, do func(ctx context.Context, uuid string) error) error {
	unlock, err := m.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	if m.journal.Building(uuid) {
		return nil
	}
	return do(ctx, uuid)
}

func (m *Manager) removeLeftover(ctx context.Context, uuid string) error {
	inst, err := m.deletedInNova(ctx, uuid)
	if err != nil || inst == nil {
		return err
	}
	if m.spared(inst) {
		return nil
	}
	reqctx.Log(ctx).Warning("removing what is left of a deleted instance")
	return m.removeFromHost(ctx, uuid)
}

// deletedInNova gives an instance whose row is deleted, or on no host at all, as that
// of a failed build. A row on another host is an instance that moved. An instance without
// a row is not ours to judge either: a guest outlives an agent that asks the wrong
// database (nova/compute/manager.py:_running_deleted_instances).
func (m *Manager) deletedInNova(ctx context.Context, uuid string) (*object.Instance, error) {
	inst, err := m.Conductor.InstanceByUUID(reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes")), uuid)
	if exception.Is(err, "InstanceNotFound") {
		reqctx.Log(ctx).Warning("found an instance on this host that nova does not know")
		return nil, nil
	}
	if err != nil || !inst.Deleted && inst.VMState != object.VMStateDeleted && inst.Host != "" {
		return nil, err
	}
	return inst, nil
}

// spared tells that an operator wants what there is of a deleted instance left alone: by running_deleted_instance_action, or for
// running_deleted_instance_timeout. What a failed build has left is neither's subject.
func (m *Manager) spared(inst *object.Instance) bool {
	deleted := inst.Deleted || inst.VMState == object.VMStateDeleted
	return deleted && (m.opts.RunningDeletedAction != "reap" || m.deletedJustNow(inst))
}

// deletedJustNow tells that running_deleted_instance_timeout is not over.
func (m *Manager) deletedJustNow(inst *object.Instance) bool {
	return !inst.DeletedAt.IsZero() && time.Since(inst.DeletedAt.Time) < m.opts.RunningDeletedTimeout
}

// expectNoTask is the expectation of a save that must not hit another operation.
func expectNoTask() conductor.Expect { return conductor.ExpectTask("") }
