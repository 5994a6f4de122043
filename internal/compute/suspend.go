package compute

import (
	"context"
	"errors"
	"maps"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// oldVMState is the key of system_metadata that holds the state to return to.
const oldVMState = "old_vm_state"

// suspendInstance lays a guest aside (nova/compute/manager.py:suspend_instance).
func (m *Manager) suspendInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	if err := m.Conductor.LoadInstance(ctx, inst, "system_metadata"); err != nil {
		return nil, err
	}
	m.notifyInstance(ctx, inst, "suspend", "start")
	s, ok := m.Driver.(driver.Suspender)
	if !ok {
		return nil, driver.ErrUnsupported
	}
	before := inst.VMState
	if err := s.Suspend(ctx, inst.UUID); err != nil {
		return nil, m.laidAsideFailed(ctx, inst, err)
	}
	metadata := maps.Clone(inst.SystemMetadata)
	if metadata == nil {
		metadata = map[string]*string{}
	}
	metadata[oldVMState] = &before
	return nil, m.saveSuspension(ctx, inst, object.VMStateSuspended, metadata, object.TaskStateSuspending, "suspend")
}

// resumeInstance lets a suspended guest go on (nova/compute/manager.py:resume_instance). One whose
// processes the host has lost meanwhile, by a reboot, is started instead.
func (m *Manager) resumeInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	if err := m.Conductor.LoadInstance(ctx, inst, "system_metadata"); err != nil {
		return nil, err
	}
	m.notifyInstance(ctx, inst, "resume", "start")
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return nil, networkError(inst, err)
	}
	s, ok := m.Driver.(driver.Suspender)
	if !ok {
		return nil, driver.ErrUnsupported
	}
	err = s.Resume(ctx, inst.UUID)
	if errors.Is(err, driver.ErrNotRunning) {
		reqctx.Log(ctx).Warning("suspended guest is gone, as after a reboot of the host; starting it")
		err = m.powerOn(ctx, inst, info)
	}
	if err != nil {
		return nil, m.laidAsideFailed(ctx, inst, err)
	}
	state := inst.System(oldVMState)
	if state == "" {
		state = object.VMStateActive
	}
	metadata := maps.Clone(inst.SystemMetadata)
	delete(metadata, oldVMState)
	return nil, m.saveSuspension(ctx, inst, state, metadata, object.TaskStateResuming, "resume")
}

// laidAsideFailed puts an instance into error whose guest is in an unknown state. One that goes on
// as before keeps its state, as nova-compute has it for drivers that have undone all
// (nova/compute/manager.py:_error_out_instance_on_exception, InstanceFaultRollback).
func (m *Manager) laidAsideFailed(ctx context.Context, inst *object.Instance, failure error) error {
	failure = novaError(inst, failure)
	for _, harmless := range []error{driver.ErrTimeout, driver.ErrNotRunning, driver.ErrNotFound} {
		if errors.Is(failure, harmless) {
			return failure
		}
	}
	if leaving(ctx, failure) {
		return failure
	}
	err := m.Conductor.SaveInstance(context.WithoutCancel(ctx), inst, map[string]any{"vm_state": object.VMStateError, "task_state": nil})
	return errors.Join(failure, err)
}

func (m *Manager) saveSuspension(ctx context.Context, inst *object.Instance, vmState string, metadata map[string]*string, task, action string) error {
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": vmState, "task_state": nil, "system_metadata": metadata,
	}, conductor.ExpectTask(task))
	if err != nil {
		return err
	}
	m.notifyInstance(ctx, inst, action, "end")
	return nil
}
