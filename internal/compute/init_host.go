package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// buildTasks are the task states of a build under way.
var buildTasks = []string{
	object.TaskStateScheduling, object.TaskStateNetworking, object.TaskStateBlockDeviceMapping, object.TaskStateSpawning,
}

// InitHost brings this host and Nova's view of it together after a start of the agent
// (nova/compute/manager.py:init_host). It touches no guest that runs as it should. What
// takes long goes on in the background; call it once, before messages are consumed.
func (m *Manager) InitHost(ctx context.Context) error {
	ctx = adminContext(ctx)
	instances, err := m.Conductor.InstancesByHost(ctx, m.opts.Host, "info_cache", "metadata", "system_metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list this host's instances: %w", err)
	}
	if err := m.resumeBuilds(ctx); err != nil {
		return err
	}
	for _, inst := range instances {
		if inst.Host == m.opts.Host {
			ctx := reqctx.WithField(ctx, "instance", inst.UUID)
			m.background(ctx, func(ctx context.Context) { m.initInstance(ctx, inst) })
		}
	}
	m.background(ctx, func(ctx context.Context) { m.removeLeftovers(ctx, instances) })
	if m.opts.TrackInstanceChanges && len(instances) > 0 {
		if err := m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, instances); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("scheduler not told of this host's instances")
		}
	}
	return nil
}

// initInstance settles one instance that an earlier stop of the agent may have left in the
// middle of something (nova/compute/manager.py:_init_instance).
func (m *Manager) initInstance(ctx context.Context, inst *object.Instance) {
	unlock, err := m.locks.Lock(ctx, inst.UUID)
	if err != nil {
		return
	}
	defer unlock()
	if err := protect(func() error { return m.settleInstance(ctx, inst) }); err != nil {
		reqctx.Log(ctx).WithError(err).Error("instance not settled after the start")
	}
}

func (m *Manager) settleInstance(ctx context.Context, inst *object.Instance) error {
	if building, err := m.isJournaled(inst.UUID); err != nil || building {
		return err // the journal brings it to its end
	}
	log := reqctx.Log(ctx).WithField("vm_state", inst.VMState).WithField("task_state", inst.TaskState)
	save := func(changes map[string]any) error { return m.Conductor.SaveInstance(ctx, inst, changes) }
	switch {
	case inst.VMState == object.VMStateSoftDelete, inst.VMState == object.VMStateError && inst.TaskState != object.TaskStateDeleting:
		return nil
	case inst.VMState == object.VMStateDeleted, inst.TaskState == object.TaskStateDeleting:
		log.Info("completing a deletion")
		return m.deleteInstance(ctx, inst)
	case inst.VMState == object.VMStateBuilding, slices.Contains(buildTasks, inst.TaskState):
		log.Warning("a build was interrupted of which nothing is known; putting the instance into error")
		return save(map[string]any{"vm_state": object.VMStateError, "task_state": nil})
	}
	state, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	switch inst.TaskState {
	case object.TaskStatePoweringOff:
		log.Info("completing a stop")
		return m.stop(ctx, inst, true)
	case object.TaskStatePoweringOn:
		log.Info("completing a start")
		_, err := m.startInstance(ctx, inst, nil)
		return err
	case object.TaskStateRebooting, object.TaskStateRebootPending, object.TaskStateRebootStarted,
		object.TaskStateRebootingHard, object.TaskStateRebootPendingHard, object.TaskStateRebootStartedHard:
		return m.completeReboot(ctx, inst, state)
	case object.TaskStatePausing, object.TaskStateUnpausing:
		return m.completePause(ctx, inst, state)
	case object.TaskStateNone:
	default:
		log.Warning("resetting the task of an operation that the agent's last stop interrupted")
		if err := save(map[string]any{"task_state": nil}); err != nil {
			return err
		}
	}
	return m.restore(ctx, inst, state)
}

// completeReboot ends a reboot that was interrupted: a guest that runs has had it, or will
// not miss it.
func (m *Manager) completeReboot(ctx context.Context, inst *object.Instance, state driver.PowerState) error {
	if state != driver.PowerStateRunning {
		reqctx.Log(ctx).Info("completing a reboot")
		if err := m.restart(ctx, inst, inst.NetworkInfo(), false); err != nil {
			return errors.Join(err, m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil}))
		}
	}
	return m.saveRunning(ctx, inst)
}

// completePause stores the state that a guest is in after an interrupted pause or unpause.
func (m *Manager) completePause(ctx context.Context, inst *object.Instance, state driver.PowerState) error {
	if state == driver.PowerStatePaused && inst.TaskState == object.TaskStateUnpausing {
		if err := m.Driver.Unpause(ctx, inst.UUID); err != nil {
			return err
		}
		state = driver.PowerStateRunning
	}
	vmState := object.VMStateActive
	if state == driver.PowerStatePaused {
		vmState = object.VMStatePaused
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": vmState, "task_state": nil, "power_state": int(state)})
}

// restore repairs the wiring of an instance and, after a reboot of the host, starts it
// again if the operator wants that.
func (m *Manager) restore(ctx context.Context, inst *object.Instance, state driver.PowerState) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil {
		return err
	}
	if !ok {
		reqctx.Log(ctx).Warning("this host has no record of an instance that nova places here")
		return nil
	}
	// The store's references are not written through: a crash of the host may have lost them.
	if err := m.Images.Acquire(rec.ImageID, inst.UUID); err != nil && !errors.Is(err, imagesync.ErrNotFound) {
		return err
	}
	for _, v := range rec.VIFs {
		if _, err := m.Plugger.Plug(ctx, v); err != nil {
			reqctx.Log(ctx).WithField("port_id", v.PortID).WithError(err).Error("port not plugged; putting the instance into error")
			return m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil})
		}
	}
	wasRunning := inst.VMState == object.VMStateActive && inst.PowerState == int(driver.PowerStateRunning)
	if isOff(state) && wasRunning && m.opts.ResumeGuestsOnHostBoot {
		reqctx.Log(ctx).Info("starting a guest that ran before the host's reboot")
		if err := m.runRecorded(ctx, rec); err != nil {
			return errors.Join(err, m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil}))
		}
		return nil
	}
	return m.syncPowerState(ctx, inst, state)
}

// removeLeftovers clears what is on this host for instances that Nova no longer has here:
// builds that a crash cut off after their journal entry ended, deletions done while the
// agent was away. An instance that moved is not ours to judge and is left alone.
func (m *Manager) removeLeftovers(ctx context.Context, instances []*object.Instance) {
	local, err := m.localInstances(ctx)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("leftovers not looked for")
		return
	}
	for _, inst := range instances {
		delete(local, inst.UUID)
	}
	for uuid := range local {
		ctx := reqctx.WithField(ctx, "instance", uuid)
		if err := m.removeLeftover(ctx, uuid); err != nil {
			reqctx.Log(ctx).WithError(err).Error("leftover not removed")
		}
	}
}

// localInstances are the UUIDs for which anything exists on this host.
func (m *Manager) localInstances(ctx context.Context) (map[string]bool, error) {
	local := map[string]bool{}
	records, err := listRecords(m.DB)
	if err != nil {
		return nil, err
	}
	for uuid := range records {
		local[uuid] = true
	}
	specs, err := m.Driver.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range specs {
		local[s.UUID] = true
	}
	roots, err := m.Roots.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, uuid := range roots {
		local[uuid] = true
	}
	return local, nil
}

func (m *Manager) removeLeftover(ctx context.Context, uuid string) error {
	unlock, err := m.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	if building, err := m.isJournaled(uuid); err != nil || building {
		return err
	}
	gone, err := m.isDeletedInNova(ctx, uuid)
	if err != nil || !gone {
		return err
	}
	reqctx.Log(ctx).Warning("removing what is left of a deleted instance")
	return m.removeFromHost(ctx, uuid, nil)
}

// isDeletedInNova tells that an instance's row is deleted, or that there is none on any
// host: a failed build has none here. A row on another host is an instance that moved.
func (m *Manager) isDeletedInNova(ctx context.Context, uuid string) (bool, error) {
	inst, err := m.Conductor.InstanceByUUID(reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes")), uuid)
	if err != nil {
		if isGone(err) {
			return true, nil
		}
		return false, err
	}
	return inst.Deleted || inst.VMState == object.VMStateDeleted || inst.Host == "", nil
}

// expectNoTask is the expectation of a save that must not hit another operation.
func expectNoTask() conductor.Expect { return conductor.ExpectTask("") }
