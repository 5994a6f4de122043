package compute

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// asked records that a user asked for something, and that this host began it at some time.
func (w *world) asked(request, action, event string, began time.Time) {
	w.nova.StartAction(uuid, action, &reqctx.Request{RequestID: request, UserID: "u", ProjectID: projectID})
	if event != "" {
		w.nova.StartEvent(uuid, event, testHost, began)
	}
}

// results are the events of a name, each with its action's request id and its result.
func (w *world) results(event string) []string {
	var found []string
	for _, e := range w.nova.Events(uuid, event) {
		found = append(found, e.Request+" "+e.Result)
	}
	return found
}

// TestOpenEvents: what an agent began, was killed in, and the next start brings to an end has a result then, under the request
// that asked for it, and no second event.
func TestOpenEvents(t *testing.T) {
	t.Parallel()
	const running, off, paused = driver.PowerStateRunning, driver.PowerStateShutdown, driver.PowerStatePaused
	before, since := time.Minute, -time.Minute // the guest was started before the operation began, or since
	for _, c := range []struct {
		method, vm, task string
		guest            driver.PowerState
		began            time.Duration
		setUp            func(w *world)
		result           string // Success unless it is told
		want             string
		anew             bool // the guest is another one, or ended
	}{
		{"stop_instance", "active", "powering-off", running, before, nil, "", "stopped/-/", true},
		{"stop_instance", "active", "powering-off", running, before, func(w *world) { w.driver.Fail("Stop", "", errBoom) }, "Error", "active/-/", false},
		{"start_instance", "stopped", "powering-on", off, before, nil, "", "active/-/", true},
		{"reboot_instance", "active", "rebooting", running, before, nil, "", "active/-/", true},
		{"reboot_instance", "active", "reboot_pending", running, since, nil, "", "active/-/", true},
		{"reboot_instance", "active", "reboot_started", running, before, nil, "", "active/-/", true},
		{"reboot_instance", "active", "reboot_started", running, since, nil, "", "active/-/", false},
		{"reboot_instance", "active", "rebooting_hard", running, before, nil, "", "active/-/", true},
		{"reboot_instance", "active", "reboot_started_hard", running, since, nil, "", "active/-/", false},
		{"reboot_instance", "active", "reboot_started_hard", off, before, func(w *world) { w.driver.Fail("Start", "", errBoom) }, "Error", "error/-/", false},
		{"pause_instance", "active", "pausing", running, before, nil, "", "paused/-/", false},
		{"pause_instance", "active", "pausing", paused, before, nil, "", "paused/-/", false},
		{"pause_instance", "active", "pausing", off, before, nil, "Error", "active/-/", false},
		{"unpause_instance", "paused", "unpausing", paused, before, nil, "", "active/-/", false},
		{"soft_delete_instance", "active", "soft-deleting", running, before, nil, "", "soft-delete/-/", true},
		{"restore_instance", "soft-delete", "restoring", off, before, nil, "", "active/-/", true},
		{"terminate_instance", "active", "deleting", running, before, nil, "", "deleted/-/", true},
		{"set_admin_password", "active", "updating_password", running, before, nil, "Error", "active/-/", false},
		{"rebuild_instance", "active", "rebuilding", running, before, nil, "Error", "error/-/", false},
		{"resize_instance", "active", "resize_migrating", running, before, nil, "Error", "active/-/", false},
	} {
		t.Run(c.method+" "+c.task, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			event := "compute_" + c.method
			w.driver.SetState(uuid, c.guest)
			old, _ := w.driver.Instance(uuid)
			w.nova.Update(uuid, map[string]any{"vm_state": c.vm, "task_state": c.task})
			w.asked("req-2", "something", event, time.Now().Add(c.began))
			w.asked("req-3", "lock", "", time.Time{})
			w.restarted()
			if c.setUp != nil {
				c.setUp(w)
			}
			w.start()
			require.Equal(t, c.want+testHost, w.nova.States(uuid))
			if c.result == "" {
				c.result = "Success"
			}
			require.Equal(t, []string{"req-2 " + c.result}, w.results(event))
			require.Equal(t, []string{"req-1 Success"}, w.results("compute__do_build_and_run_instance"))
			guest, _ := w.driver.Instance(uuid)
			require.Equal(t, c.anew, guest.InitPID != old.InitPID)
			if c.result == "Error" {
				e := w.nova.Events(uuid, event)[0]
				require.NotEmpty(t, e.Details)
				require.NotContains(t, e.Traceback, "*")
			}
		})
	}
}

// TestEventOfAMessageThatWaits: what a message has begun since the start, and waits for its turn, is not the start's to end.
func TestEventOfAMessageThatWaits(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.nova.Update(uuid, map[string]any{"task_state": "powering-off"})
	w.asked("req-2", "stop", "compute_stop_instance", time.Now())
	w.restarted()
	end := w.begun.add(reqctx.With(t.Context(), &reqctx.Request{RequestID: "req-2"}), uuid, "stop_instance")
	w.start()
	require.Equal(t, []string{"req-2 "}, w.results("compute_stop_instance"))
	end()
	w.endOpenEvents(t.Context(), uuid, "stop_instance", errCutOff)
	require.Equal(t, []string{"req-2 Error"}, w.results("compute_stop_instance"))
}

// TestTaskThatChangedMeanwhile: a start whose turn comes late does not do what nobody wants any more.
func TestTaskThatChangedMeanwhile(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.nova.Update(uuid, map[string]any{"task_state": "pausing"})
	inst, err := w.Conductor.InstanceByUUID(adminContext(t.Context()), uuid)
	require.NoError(t, err)
	w.nova.Update(uuid, map[string]any{"task_state": "rebooting_hard"})
	require.NoError(t, w.settleInstance(adminContext(t.Context()), inst))
	require.Equal(t, "active/rebooting_hard/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State)
}

// TestEventThatWasNeverBegun: the agent ended between taking a message on and beginning its event.
func TestEventThatWasNeverBegun(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.asked("req-2", "stop", "", time.Time{})
	w.finishEvent(reqctx.With(t.Context(), &reqctx.Request{RequestID: "req-2"}), uuid, "stop_instance", errBoom)
	require.Equal(t, []string{"req-2 Error"}, w.results("compute_stop_instance"))
}

// TestEventsThatAreNotOpen: an operation that has no open event here gets none, nor a result: its message may be in the queue, and brings its own.
func TestEventsThatAreNotOpen(t *testing.T) {
	t.Parallel()
	const event = "compute_stop_instance"
	for name, c := range map[string]struct {
		setUp func(w *world)
		want  []string
	}{
		"message in the queue": {func(w *world) {
			w.asked("req-2", "stop", event, time.Now())
			w.asked("req-3", "stop", "", time.Time{})
		}, []string{"req-2 "}},
		"another host's": {func(w *world) {
			w.asked("req-2", "stop", "", time.Time{})
			w.nova.StartEvent(uuid, event, otherHost, time.Now())
		}, []string{"req-2 "}},
		"one of two with a name": {func(w *world) { // Nova would end the first once more
			w.asked("req-2", "stop", event, time.Now())
			w.finishEvent(reqctx.With(w.t.Context(), &reqctx.Request{RequestID: "req-2"}), uuid, "stop_instance", nil)
			w.nova.StartEvent(uuid, event, testHost, time.Now())
		}, []string{"req-2 Success", "req-2 "}},
		"two that are open": {func(w *world) {
			w.asked("req-2", "stop", event, time.Now())
			w.asked("req-3", "stop", event, time.Now())
		}, []string{"req-2 Success", "req-3 Success"}},
		"actions not listed": {func(w *world) {
			w.asked("req-2", "stop", event, time.Now())
			w.nova.Fail("InstanceActionList.get_by_instance_uuid", errBoom)
		}, []string{"req-2 "}},
		"events not listed": {func(w *world) {
			w.asked("req-2", "stop", event, time.Now())
			w.nova.Fail("InstanceActionEventList.get_by_action", errBoom)
		}, []string{"req-2 "}},
		"action is gone": {func(w *world) {
			w.asked("req-2", "stop", event, time.Now())
			w.nova.Fail("InstanceActionEvent.event_finish_with_failure", novatest.Failure("InstanceActionNotFound"))
		}, []string{"req-2 "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.nova.Update(uuid, map[string]any{"task_state": "powering-off"})
			c.setUp(w)
			w.restarted()
			w.start()
			require.Equal(t, "stopped/-/"+testHost, w.nova.States(uuid), "the operation is completed in any case")
			require.Equal(t, c.want, w.results(event))
		})
	}
}

// TestTracebackOfAnEvent: an administrator reads Nova's class and the cause, and nothing of the program's own types.
func TestTracebackOfAnEvent(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("attach_volume", "", nil)
	require.Error(t, err)
	refused := w.nova.Events(uuid, "compute_attach_volume")[0]
	require.Equal(t, "NotImplementedError: volume attach is not supported by the lxc driver", refused.Traceback)

	w.driver.Fail("Stop", "", driver.ErrTimeout)
	_, err = w.operate("stop_instance", "powering-off", nil)
	require.Error(t, err)
	failed := w.nova.Events(uuid, "compute_stop_instance")[0]
	require.Equal(t, "Error", failed.Result)
	require.Regexp(t, `^nova\.exception\.InstancePowerOffFailure: Failed to power off instance: [^\n*]+$`, failed.Traceback)
}
