package compute

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// saves are the saves of the instance, without what a save of the node brings.
func (w *world) saves() []string { return w.nova.LogOf("Instance.save") }

func TestPowerOperations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, task string
		vm           string // before
		guest        driver.PowerState
		args         map[string]any
		saves        string
		want         driver.PowerState
		events       string
	}{
		{
			"stop_instance", "powering-off", "active", driver.PowerStateRunning,
			map[string]any{"clean_shutdown": true},
			`Instance.save power_state=4 task_state=null vm_state="stopped" if task_state=["powering-off"]`, driver.PowerStateShutdown, "power_off",
		},
		{
			"stop_instance", "powering-off", "active", driver.PowerStateShutdown, nil,
			`Instance.save power_state=4 task_state=null vm_state="stopped" if task_state=["powering-off",null]`, driver.PowerStateShutdown, "power_off",
		},
		{
			"start_instance", "powering-on", "stopped", driver.PowerStateShutdown, nil,
			`Instance.save power_state=1 task_state=null vm_state="active" if task_state=["powering-on"]`, driver.PowerStateRunning, "power_on",
		},
		{
			"pause_instance", "pausing", "active", driver.PowerStateRunning, nil,
			`Instance.save power_state=3 task_state=null vm_state="paused" if task_state=["pausing"]`, driver.PowerStatePaused, "pause",
		},
		{
			"unpause_instance", "unpausing", "paused", driver.PowerStatePaused, nil,
			`Instance.save power_state=1 task_state=null vm_state="active" if task_state=["unpausing"]`, driver.PowerStateRunning, "unpause",
		},
		{
			"soft_delete_instance", "soft-deleting", "active", driver.PowerStateRunning, nil,
			`Instance.save power_state=4 task_state=null vm_state="soft-delete" if task_state=["soft-deleting"]`, driver.PowerStateShutdown, "soft_delete",
		},
		{
			"restore_instance", "restoring", "soft-delete", driver.PowerStateShutdown, nil,
			`Instance.save power_state=1 task_state=null vm_state="active" if task_state=["restoring"]`, driver.PowerStateRunning, "restore",
		},
		{
			"reboot_instance", "rebooting", "active", driver.PowerStateRunning,
			map[string]any{"reboot_type": "SOFT", "block_device_info": nil},
			`Instance.save power_state=1 task_state="reboot_pending" if task_state=["rebooting","reboot_pending","reboot_started"]
			 Instance.save task_state="reboot_started" if task_state=["reboot_pending"]
			 Instance.save power_state=1 task_state=null vm_state="active"`, driver.PowerStateRunning, "reboot",
		},
		{
			"reboot_instance", "rebooting_hard", "error", driver.PowerStateShutdown,
			map[string]any{"reboot_type": "HARD"},
			`Instance.save power_state=4 task_state="reboot_pending_hard" if task_state=["rebooting_hard","reboot_pending_hard","reboot_started_hard"]
			 Instance.save task_state="reboot_started_hard" if task_state=["reboot_pending_hard"]
			 Instance.save power_state=1 task_state=null vm_state="active"`, driver.PowerStateRunning, "reboot",
		},
	} {
		t.Run(c.method+" "+c.vm+" "+c.guest.String(), func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.driver.SetState(uuid, c.guest)
			w.nova.Update(uuid, map[string]any{"vm_state": c.vm})
			_, err := w.operate(c.method, c.task, c.args)
			require.NoError(t, err)
			requireLines(t, c.saves, w.saves())
			guest, _ := w.driver.Instance(uuid)
			require.Equal(t, c.want, guest.State)
			require.Equal(t, []string{"INFO compute.instance." + c.events + ".start", "INFO compute.instance." + c.events + ".end"}, w.sender.all())
			require.Equal(t, []string{
				"InstanceActionEvent.event_start compute_" + c.method, "InstanceActionEvent.event_finish_with_failure compute_" + c.method,
			}, w.nova.LogOf("InstanceActionEvent"))
			if c.want == driver.PowerStateRunning && c.guest == driver.PowerStateShutdown {
				require.ElementsMatch(t, []string{"plug port-1", "root.mount " + uuid}, onlyHost(w), "a start finds its network again")
			}
			if c.want == driver.PowerStateShutdown {
				require.Contains(t, w.trail.all(), "root.unmount "+uuid)
				require.Equal(t, []string{"port-1"}, w.plugger.plugged(), "a stopped server keeps its place in the network")
			}
		})
	}
}

func onlyHost(w *world) []string {
	var lines []string
	for _, line := range w.trail.all() {
		if strings.HasPrefix(line, "plug") || strings.HasPrefix(line, "root.mount") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestSoftRebootOfADeafGuest(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.SetDeaf(uuid, true)
	before, _ := w.driver.Instance(uuid)
	_, err := w.operate("reboot_instance", "rebooting", map[string]any{"reboot_type": "SOFT"})
	require.NoError(t, err)
	after, _ := w.driver.Instance(uuid)
	require.NotEqual(t, before.InitPID, after.InitPID, "it is rebooted hard")
}

// TestRebootKeepsHealthyDisk: what a guest has written need not be on the host's disk before it runs again, and a disk with errors is mounted anew.
func TestRebootKeepsHealthyDisk(t *testing.T) {
	t.Parallel()
	for healthy, want := range map[bool]int{true: 0, false: 1} {
		w := built(t)
		w.roots.healthy = healthy
		w.trail.clear()
		_, err := w.operate("reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"})
		require.NoError(t, err)
		unmounts := 0
		for _, line := range w.trail.all() {
			if line == "root.unmount "+uuid {
				unmounts++
			}
		}
		require.Equal(t, want, unmounts, "healthy: %t", healthy)
	}
}

func TestRebootFailures(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.Fail("Stop", "", errBoom) // the guest runs on
	_, err := w.operate("reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"})
	require.NoError(t, err, "a guest that runs had no reboot, and no error")
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Len(t, w.nova.Faults(), 1)
	require.Contains(t, w.sender.all(), "ERROR compute.instance.reboot.error")

	w.roots.healthy = true
	w.trail.clear()
	w.driver.Fail("Start", "", errBoom)
	_, err = w.operate("reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"})
	require.Error(t, err)
	require.True(t, w.trail.has("root.unmount "+uuid), "what does not run is not mounted")
	require.Equal(t, "error/-/"+testHost, w.nova.States(uuid))

	for name, args := range map[string]map[string]any{"missing": nil, "wrong": {"reboot_type": 7}} {
		_, err = w.operate("reboot_instance", "rebooting", args)
		require.Error(t, err, name)
		require.Equal(t, "error/-/"+testHost, w.nova.States(uuid), name)
	}
}

// TestFailedOperations: the task state is reverted and the cause kept, as nova-compute's
// decorators do.
func TestFailedOperations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, method, task string
		setUp              func(w *world)
		class              string
		states             string
		fault              bool
	}{
		{"cause", "pause_instance", "pausing", func(w *world) { w.driver.Fail("Pause", "", errBoom) }, "", "active/-/", true},
		{"not running", "pause_instance", "pausing", func(w *world) { w.driver.SetState(uuid, driver.PowerStateShutdown) }, "InstanceNotRunning", "active/-/", true},
		{"not supported", "unpause_instance", "unpausing", func(w *world) { w.driver.Fail("Unpause", "", driver.ErrUnsupported) }, "NotImplementedError", "active/-/", true},
		{
			"guest is not here", "pause_instance", "pausing", func(w *world) { require.NoError(w.t, w.Driver.Destroy(w.t.Context(), uuid)) },
			"InstanceNotFound", "active/-/", false,
		},
		{
			"no record", "start_instance", "powering-on", func(w *world) { require.NoError(w.t, w.removeFromHost(w.t.Context(), uuid)) },
			"InstanceNotFound", "active/-/", false,
		},
		{"neutron is down", "start_instance", "powering-on", func(w *world) { w.neutron.setDown(true) }, "", "active/-/", true},
		{"port not plugged", "start_instance", "powering-on", func(w *world) { w.trail.fail("plug", errBoom) }, "", "active/-/", true},
		{"disk not mounted", "restore_instance", "restoring", func(w *world) { w.trail.fail("root.mount", errBoom) }, "", "active/-/", true},
		{"power state unknown", "stop_instance", "powering-off", func(w *world) { w.driver.Fail("Info", "", errBoom) }, "", "active/-/", true},
		{"does not stop", "soft_delete_instance", "soft-deleting", func(w *world) { w.driver.Fail("Stop", "", driver.ErrTimeout) }, "InstancePowerOffFailure", "active/-/", true},
		{"another operation", "pause_instance", "rebooting", nil, "UnexpectedTaskStateError", "active/rebooting/", false},
		{"deleted meanwhile", "pause_instance", "deleting", nil, "UnexpectedDeletingTaskStateError", "active/deleting/", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			if c.setUp != nil {
				c.setUp(w)
			}
			_, err := w.operate(c.method, c.task, nil)
			require.Error(t, err)
			if c.class != "" {
				require.True(t, exception.Is(err, c.class), "%v", err)
			}
			require.Equal(t, c.states+testHost, w.nova.States(uuid))
			require.Equal(t, c.fault, len(w.nova.Faults()) == 1)
			finish := w.nova.LogOf("InstanceActionEvent.event_finish")
			require.Len(t, finish, 1)
			require.Contains(t, finish[0], " failed: ")
		})
	}
}

// TestLimitsOfAnOperation: a caller that gives up leaves a task that is reverted; the end of
// the agent leaves one that its next start completes.
func TestLimitsOfAnOperation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(ctx context.Context) (context.Context, context.CancelFunc)
		want string
	}{
		{"deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 50*time.Millisecond)
		}, "active/-/"},
		{"end of the agent", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(50*time.Millisecond, cancel)
			return ctx, cancel
		}, "active/powering-on/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			defer w.trail.block("root.mount")()
			w.nova.Update(uuid, map[string]any{"task_state": "powering-on"})
			ctx, cancel := c.end(user(t))
			defer cancel()
			_, err := w.call(ctx, "start_instance", rpc.Args{"instance": w.nova.Instance(uuid)})
			require.Error(t, err)
			require.Equal(t, c.want+testHost, w.nova.States(uuid))
		})
	}
}

// TestOperationsQueue: operations on one instance come one after the other, and a waiter
// gives up with its caller.
func TestOperationsQueue(t *testing.T) {
	t.Parallel()
	w := built(t)
	unlock, err := w.locks.Lock(t.Context(), uuid)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(user(t), 20*time.Millisecond)
	defer cancel()
	_, err = w.call(ctx, "pause_instance", rpc.Args{"instance": w.nova.Instance(uuid)})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	unlock()
	_, err = w.operate("pause_instance", "pausing", nil)
	require.NoError(t, err)
}

func TestShutdownTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for value, want := range map[string]time.Duration{"": time.Minute, "0": 0, "7": 7 * time.Second, "-1": time.Minute, "soon": time.Minute} {
		inst := &object.Instance{SystemMetadata: map[string]*string{"image_os_shutdown_timeout": &value}}
		require.Equal(t, want, w.shutdownTimeout(inst), value)
	}
	require.Equal(t, time.Minute, w.shutdownTimeout(&object.Instance{}))
}

func TestProtect(t *testing.T) {
	t.Parallel()
	require.NoError(t, protect(t.Context(), func() error { return nil }))
	require.ErrorIs(t, protect(t.Context(), func() error { return errBoom }), errBoom)
	err := protect(t.Context(), func() error { panic("a mistake") })
	require.ErrorIs(t, err, errPanic)
	require.NotContains(t, err.Error(), "mistake", "it may be a user's to read")
}

// TestEventsThatCannotBeKept: history is no reason to fail an operation.
func TestEventsThatCannotBeKept(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.nova.Fail("InstanceActionEvent.event_start", novatest.Failure("InstanceActionNotFound"))
	w.nova.Fail("InstanceActionEvent.event_finish_with_failure", novatest.Failure("InstanceActionEventNotFound"))
	_, err := w.operate("pause_instance", "pausing", nil)
	require.NoError(t, err)
	w.nova.Fail("InstanceActionEvent.event_finish_with_failure", errBoom)
	w.nova.Fail("InstanceFault.create", errBoom)
	w.nova.Fail("Instance.save", nil, errBoom)
	w.driver.Fail("Unpause", "", errBoom)
	_, err = w.operate("unpause_instance", "unpausing", nil)
	require.Error(t, err)
}
