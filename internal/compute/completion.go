package compute

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// completion carries an interrupted operation to its end; began is when its event did, zero if it has none.
type completion struct {
	op   operation
	body func(ctx context.Context, inst *object.Instance, began time.Time) error
}

// complete carries an operation to its end in the name of who asked for it, and gives its event the result. An operation without an
// open event gets none: its message may still be in the queue, and brings its own.
func (m *Manager) complete(ctx context.Context, inst *object.Instance, c completion) error {
	open := m.openEvents(ctx, inst.UUID, c.op.event)
	event, began := c.op.event, time.Time{}
	if len(open) == 0 {
		c.op.event = ""
	} else {
		c.op.resumed, began = true, open[0].began
		ctx = reqctx.With(ctx, open[0].request)
	}
	_, err := m.perform(ctx, c.op, inst, nil, func(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
		return nil, protect(ctx, func() error { return c.body(ctx, inst, began) })
	})
	if len(open) < 2 || leaving(ctx, err) {
		return err
	}
	for _, e := range open[1:] {
		m.finishEvent(reqctx.With(ctx, e.request), inst.UUID, event, err)
	}
	return err
}

// taskChanged tells that the task of an instance is another by now: its turn at the start may come late, and the API lets a user reboot
// hard what hangs. The message of that waits for the lock.
func (m *Manager) taskChanged(ctx context.Context, inst *object.Instance) (bool, error) {
	now, err := m.Conductor.InstanceByUUID(ctx, inst.UUID)
	if err != nil {
		return false, err
	}
	return now.TaskState != inst.TaskState, nil
}

// deletion is the rest of a deletion (see deleteInstance). The lock is held.
func (m *Manager) deletion(ownPorts []string) completion {
	return completion{
		operation{method: "terminate_instance", event: "terminate_instance", fault: true},
		func(ctx context.Context, inst *object.Instance, _ time.Time) error {
			return m.deleteInstance(ctx, inst, ownPorts)
		},
	}
}

// completions are the tasks that are carried out again, or to their end. The lock is held.
func (m *Manager) completions() map[string]completion {
	again := func(method string, body instanceFunc) completion {
		return completion{
			operation{method: method, event: method, fault: true, revert: true},
			func(ctx context.Context, inst *object.Instance, _ time.Time) error {
				_, err := body(ctx, inst, nil)
				return err
			},
		}
	}
	// onward leaves the states itself.
	onward := func(method string, body func(context.Context, *object.Instance, time.Time) error) completion {
		return completion{operation{method: method, event: method, fault: true}, body}
	}
	reboot := onward("reboot_instance", m.completeReboot)
	return map[string]completion{
		object.TaskStatePoweringOff:       again("stop_instance", m.stopInstance),
		object.TaskStatePoweringOn:        again("start_instance", m.startInstance),
		object.TaskStateSoftDeleting:      again("soft_delete_instance", m.softDeleteInstance),
		object.TaskStateRestoring:         again("restore_instance", m.restoreInstance),
		object.TaskStateSuspending:        again("suspend_instance", m.suspendInstance),
		object.TaskStateResuming:          again("resume_instance", m.resumeInstance),
		object.TaskStateRebooting:         reboot,
		object.TaskStateRebootPending:     reboot,
		object.TaskStateRebootStarted:     reboot,
		object.TaskStateRebootingHard:     reboot,
		object.TaskStateRebootPendingHard: reboot,
		object.TaskStateRebootStartedHard: reboot,
		object.TaskStatePausing:           onward("pause_instance", m.completePause),
		object.TaskStateUnpausing:         onward("unpause_instance", m.completePause),
	}
}

// clockSkew is how far an event's time and this host's clock may be apart, besides the second that a time is rounded to.
const clockSkew = 5 * time.Second

// completeReboot ends a reboot that was interrupted. One whose message is still in the queue is left to that
// (nova/compute/manager.py:_init_instance of Zed does so, too). It is made if the agent had only begun with it
// (nova/compute/manager.py:_retry_reboot), or if the guest is known to run since before it began: it may have waited for the guest to halt.
// Else a guest that runs has been rebooted.
func (m *Manager) completeReboot(ctx context.Context, inst *object.Instance, began time.Time) error {
	var soft, pending bool
	switch inst.TaskState {
	case object.TaskStateRebooting, object.TaskStateRebootingHard:
		if began.IsZero() {
			return nil
		}
		soft, pending = inst.TaskState == object.TaskStateRebooting, true
	case object.TaskStateRebootPending:
		soft, pending = true, true
	case object.TaskStateRebootPendingHard:
		pending = true
	case object.TaskStateRebootStarted:
		soft = true
	}
	info, err := m.Driver.Info(ctx, inst.UUID)
	if err != nil && !errors.Is(err, driver.ErrNotFound) {
		return err
	}
	expected := conductor.ExpectTask(inst.TaskState)
	running := info.PowerState == driver.PowerStateRunning
	untouched := !began.IsZero() && !info.StartedAt.IsZero() && info.StartedAt.Before(began.Add(-clockSkew))
	if !running || pending || untouched {
		err := m.restart(ctx, inst, inst.NetworkInfo(), soft && running)
		if errors.Is(err, errLeaving) {
			return err
		}
		if err != nil {
			failed := map[string]any{"vm_state": object.VMStateError, "task_state": nil}
			return errors.Join(err, m.Conductor.SaveInstance(ctx, inst, failed, expected))
		}
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(now), "vm_state": stateAfterReboot(inst), "task_state": nil}, expected)
}

// completePause carries an interrupted pause or unpause to its end.
func (m *Manager) completePause(ctx context.Context, inst *object.Instance, _ time.Time) error {
	state, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	switch {
	case state == driver.PowerStatePaused && inst.TaskState == object.TaskStateUnpausing:
		if err := m.Driver.Unpause(ctx, inst.UUID); err != nil {
			return err
		}
		state = driver.PowerStateRunning
	case state == driver.PowerStateRunning && inst.TaskState == object.TaskStatePausing:
		if err := m.Driver.Pause(ctx, inst.UUID); err != nil {
			return err
		}
		state = driver.PowerStatePaused
	}
	vmState := object.VMStateActive
	if state == driver.PowerStatePaused {
		vmState = object.VMStatePaused
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": vmState, "task_state": nil, "power_state": int(state)},
		conductor.ExpectTask(inst.TaskState))
	if isOff(state) { // it crashed meanwhile
		return errors.Join(fmt.Errorf("pause or unpause: %w", driver.ErrNotRunning), err)
	}
	return err
}
