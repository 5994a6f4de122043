package compute

import (
	"context"
	"errors"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// reboot types of reboot_instance.
const rebootSoft = "SOFT"

// rebootInstance restarts a guest: a soft reboot asks it to halt and becomes hard when
// it does not; a hard one kills it (nova/compute/manager.py:reboot_instance).
func (m *Manager) rebootInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var kind string
	if err := args.Decode("reboot_type", &kind); err != nil {
		return nil, err
	}
	soft := kind == rebootSoft
	pending, started := object.TaskStateRebootPendingHard, object.TaskStateRebootStartedHard
	expected := []string{object.TaskStateRebootingHard, object.TaskStateRebootPendingHard, object.TaskStateRebootStartedHard}
	if soft {
		pending, started = object.TaskStateRebootPending, object.TaskStateRebootStarted
		expected = []string{object.TaskStateRebooting, object.TaskStateRebootPending, object.TaskStateRebootStarted}
	}
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return nil, networkError(inst, err)
	}
	inst.TaskState = pending // nova-compute tells of the reboot before it stores this
	m.notifyInstance(ctx, inst, "reboot", "start")
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return nil, err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(now), "task_state": pending}, conductor.ExpectTask(expected...))
	if err != nil {
		return nil, err
	}
	if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": started}, conductor.ExpectTask(pending)); err != nil {
		return nil, err
	}
	err = m.restart(ctx, inst, info, soft)
	if errors.Is(err, errLeaving) { // the guest was told to halt: the next start must not take it for one that is up again
		saveErr := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": pending}, conductor.ExpectTask(started))
		return nil, errors.Join(err, saveErr)
	}
	if err != nil {
		return nil, m.rebootFailed(ctx, inst, err)
	}
	if now, err = m.powerState(ctx, inst.UUID); err != nil {
		return nil, err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(now), "vm_state": stateAfterReboot(inst), "task_state": nil})
	if err != nil {
		return nil, err
	}
	m.notifyInstance(ctx, inst, "reboot", "end")
	return nil, nil
}

// stateAfterReboot: what is in rescue stays there.
func stateAfterReboot(inst *object.Instance) string {
	if inst.VMState == object.VMStateRescued {
		return object.VMStateRescued
	}
	return object.VMStateActive
}

func (m *Manager) restart(ctx context.Context, inst *object.Instance, info object.NetworkInfo, soft bool) error {
	if soft {
		var down bool
		err := m.await(ctx, func(ctx context.Context) (err error) {
			down, err = m.Driver.Shutdown(ctx, inst.UUID, m.opts.RebootTimeout)
			return err
		})
		if err != nil && !errors.Is(err, driver.ErrNotRunning) {
			return err
		}
		if !down && err == nil {
			reqctx.Log(ctx).WithField("timeout", m.opts.RebootTimeout).Warning("guest did not halt for a soft reboot; rebooting it hard")
		}
	}
	if err := m.powerOffToStart(ctx, inst.UUID); err != nil {
		return err
	}
	return m.powerOn(ctx, inst, info)
}

// rebootFailed keeps an instance active whose guest runs in spite of the failure, with
// a fault; any other is in error.
func (m *Manager) rebootFailed(ctx context.Context, inst *object.Instance, failure error) error {
	failure = novaError(inst, failure)
	now, err := m.powerState(ctx, inst.UUID)
	if err == nil && now == driver.PowerStateRunning {
		reqctx.Log(ctx).WithError(failure).Error("reboot failed, the guest runs")
		m.recordFault(ctx, inst, failure)
		m.Notify.Instance(ctx, notify.Event{Action: "reboot", Phase: "error", Instance: inst, Err: failure, BDMs: noVolumes})
		return m.Conductor.SaveInstance(ctx, inst, map[string]any{
			"power_state": int(now), "vm_state": object.VMStateActive, "task_state": nil,
		})
	}
	if leaving(ctx, failure) {
		return failure
	}
	if saveErr := m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError}); saveErr != nil {
		return errors.Join(failure, saveErr)
	}
	return failure
}
