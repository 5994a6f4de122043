package compute

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	w := built(t)
	before, _ := w.driver.Instance(uuid)
	_, err := w.operate("suspend_instance", "suspending", nil)
	require.NoError(t, err)
	require.Equal(t, "suspended/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, "active", w.instance("system_metadata").System(oldVMState))
	require.Equal(t, int(driver.PowerStateSuspended), w.instance().PowerState)
	require.Equal(t, []string{"INFO compute.instance.suspend.start", "INFO compute.instance.suspend.end"}, w.sender.all())
	require.Equal(t, []string{
		"InstanceActionEvent.event_start compute_suspend_instance", "InstanceActionEvent.event_finish_with_failure compute_suspend_instance",
	}, w.nova.LogOf("InstanceActionEvent"))

	require.NoError(t, w.syncPowerStates(t.Context()))
	require.Equal(t, "suspended/-/"+testHost, w.nova.States(uuid), "the sync leaves it alone")

	w.sender.clear()
	_, err = w.operate("resume_instance", "resuming", nil)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	inst := w.instance("system_metadata")
	require.NotContains(t, inst.SystemMetadata, oldVMState)
	require.Contains(t, inst.SystemMetadata, "image_min_disk", "the rest stays")
	require.Equal(t, int(driver.PowerStateRunning), inst.PowerState)
	require.Equal(t, []string{"INFO compute.instance.resume.start", "INFO compute.instance.resume.end"}, w.sender.all())
	after, _ := w.driver.Instance(uuid)
	require.Equal(t, before.InitPID, after.InitPID, "the same processes go on")
}

func TestResumeAfterAHostReboot(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.ResumeGuestsOnHostBoot = true })
	_, err := w.operate("suspend_instance", "suspending", nil)
	require.NoError(t, err)
	w.driver.SetState(uuid, driver.PowerStateShutdown)
	w.restarted()
	require.NoError(t, w.InitHost(t.Context()))
	w.drain()
	require.Equal(t, "suspended/-/"+testHost, w.nova.States(uuid), "only guests that ran are started")
	require.Equal(t, int(driver.PowerStateShutdown), w.instance().PowerState)

	_, err = w.operate("resume_instance", "resuming", nil)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State)
}

func TestSuspendFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, method, task string
		failure            error
		want, class        string
	}{
		{"a process that cannot be frozen", "suspend_instance", "suspending", driver.ErrTimeout, "active", "InstancePowerOffFailure"},
		{"a guest that just stopped", "suspend_instance", "suspending", driver.ErrNotRunning, "active", "InstanceNotRunning"},
		{"suspend", "suspend_instance", "suspending", errBoom, "error", ""},
		{"resume", "resume_instance", "resuming", errBoom, "error", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.driver.Fail("Suspend", "", c.failure)
			w.driver.Fail("Resume", "", c.failure)
			_, err := w.operate(c.method, c.task, nil)
			require.Error(t, err)
			if c.class != "" {
				require.True(t, exception.Is(err, c.class), err)
			}
			require.Equal(t, c.want+"/-/"+testHost, w.nova.States(uuid))
			require.Len(t, w.nova.Faults(), 1)
		})
	}
}

// TestSuspendIsCompleted: an agent that was killed in the middle ends what it began.
func TestSuspendIsCompleted(t *testing.T) {
	t.Parallel()
	for task, want := range map[string]string{"suspending": "suspended", "resuming": "active"} {
		t.Run(task, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			if task == "resuming" {
				_, err := w.operate("suspend_instance", "suspending", nil)
				require.NoError(t, err)
			}
			w.nova.Update(uuid, map[string]any{"task_state": task})
			w.restarted()
			require.NoError(t, w.InitHost(t.Context()))
			w.drain()
			require.Equal(t, want+"/-/"+testHost, w.nova.States(uuid))
		})
	}
}
