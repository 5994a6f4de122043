package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// WatchGuests follows the guests' own changes of power state until ctx ends: a poweroff
// inside becomes a stop of the server at once
// (nova/compute/manager.py:handle_lifecycle_event).
func (m *Manager) WatchGuests(ctx context.Context) error {
	for event := range m.Driver.Events(ctx) {
		ectx := reqctx.WithField(adminContext(ctx), "instance", event.UUID)
		m.background(ectx, func(ctx context.Context) {
			if err := protect(ctx, func() error { return m.guestChanged(ctx, event) }); err != nil {
				reqctx.Log(ctx).WithError(err).Error("power state not followed")
			}
		})
	}
	return ctx.Err()
}

func (m *Manager) guestChanged(ctx context.Context, event driver.Event) error {
	if !isOff(event.PowerState) {
		return nil // a start is always ours, and whoever started it stores the state
	}
	return m.followGuest(ctx, event.UUID)
}

// followGuest makes a server follow its guest's power state, unless an operation is under
// way: that has set its task state before, and stores what comes of it.
func (m *Manager) followGuest(ctx context.Context, uuid string) error {
	unlock, err := m.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := m.powerState(ctx, uuid)
	if err != nil {
		return err
	}
	inst, err := m.Conductor.InstanceByUUID(ctx, uuid, "system_metadata", "flavor", "info_cache", "metadata")
	if err != nil {
		if exception.Is(err, "InstanceNotFound") {
			return nil
		}
		return err
	}
	if inst.Host != m.opts.Host {
		return nil
	}
	if again, err := m.rebootsItself(ctx, inst); again {
		return err
	}
	return m.syncPowerState(ctx, inst, state)
}

// rebootsItself starts a guest again that is down because it asked to be rebooted and its
// monitor could not do that, and tells whether it did. The caller holds the instance's lock.
func (m *Manager) rebootsItself(ctx context.Context, inst *object.Instance) (bool, error) {
	if inst.TaskState != object.TaskStateNone || inst.VMState != object.VMStateActive {
		return false, nil
	}
	info, err := m.Driver.Info(ctx, inst.UUID)
	if err != nil || !info.Rebooting {
		return false, nil //nolint:nilerr // a guest that cannot be looked at is the caller's
	}
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return false, err
	}
	rec.Hot = false
	if err := m.saveRecord(rec); err != nil {
		return false, err
	}
	if err := m.runRecorded(ctx, rec); err != nil {
		reqctx.Log(ctx).WithError(err).Error("guest that rebooted itself not started again")
		return false, nil
	}
	reqctx.Log(ctx).Info("guest rebooted itself")
	return true, nil
}

// syncPowerState stores the guest's power state and makes the server follow it: a guest
// that is down stops its server, a guest that runs although its server is stopped is
// stopped (nova/compute/manager.py:_sync_instance_power_state). The caller holds
// the instance's lock, and the instance has no task.
func (m *Manager) syncPowerState(ctx context.Context, inst *object.Instance, state driver.PowerState) error {
	if inst.TaskState != object.TaskStateNone {
		return nil
	}
	log := reqctx.Log(ctx).WithField("vm_state", inst.VMState).WithField("power_state", state.String())
	if inst.PowerState != int(state) {
		if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(state)}); err != nil {
			return err
		}
	}
	down := state == driver.PowerStateShutdown || state == driver.PowerStateCrashed
	switch {
	case inst.VMState == object.VMStateActive && (down || state == driver.PowerStateSuspended),
		inst.VMState == object.VMStatePaused && down:
		log.Info("guest stopped by itself; stopping the server")
		return m.stopThroughAPI(ctx, inst)
	case inst.VMState == object.VMStateStopped && !isOff(state):
		log.Warning("guest runs although its server is stopped; stopping it")
		return m.stopThroughAPI(ctx, inst)
	}
	return nil
}

// stopThroughAPI does what the API's stop would: the task state, an action that the
// owner finds in the server's history, and the stop itself
// (nova/compute/api.py:force_stop).
func (m *Manager) stopThroughAPI(ctx context.Context, inst *object.Instance) error {
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStatePoweringOff, "progress": 0}, expectNoTask())
	if err != nil {
		if exception.Is(err, "UnexpectedTaskStateError") {
			return nil // somebody asked for something meanwhile
		}
		return err
	}
	if err := m.Conductor.StartAction(ctx, inst.UUID, "stop"); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("stop action not recorded")
	}
	op := operation{method: "stop_instance", event: "stop_instance", fault: true, revert: true}
	_, err = m.perform(ctx, op, inst, nil, m.stopInstance)
	return err
}

// syncPowerStates compares every instance with its guest, for what events may have
// missed (nova/compute/manager.py:_sync_power_states).
func (m *Manager) syncPowerStates(ctx context.Context) error {
	instances, err := m.Conductor.InstancesByHost(ctx, m.opts.Host)
	if err != nil {
		return err
	}
	for _, inst := range instances {
		if inst.TaskState != object.TaskStateNone || inst.Host != m.opts.Host {
			continue
		}
		ctx := reqctx.WithField(ctx, "instance", inst.UUID)
		state, err := m.powerState(ctx, inst.UUID)
		if err != nil {
			reqctx.Log(ctx).WithError(err).Warning("power state not known")
			continue
		}
		if inst.PowerState == int(state) && settled(inst.VMState, state) {
			continue
		}
		if err := m.followGuest(ctx, inst.UUID); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("power state not followed")
		}
	}
	return nil
}

// settled tells that a server's state and its guest's agree.
func settled(vmState string, state driver.PowerState) bool {
	switch vmState {
	case object.VMStateActive:
		return !isOff(state)
	case object.VMStateStopped, object.VMStateSoftDelete:
		return isOff(state)
	}
	return true
}
