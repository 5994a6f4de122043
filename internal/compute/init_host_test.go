package compute

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/vif"
)

// TestSettle: what a start makes of an instance, by its states and its guest's
// (nova/compute/manager.py:_init_instance).
func TestSettle(t *testing.T) {
	t.Parallel()
	const running, off, paused = driver.PowerStateRunning, driver.PowerStateShutdown, driver.PowerStatePaused
	for _, c := range []struct {
		vm, task  string
		power     driver.PowerState // in the database
		guest     driver.PowerState
		want      string
		wantGuest driver.PowerState
		stopped   bool // the guest was restarted or stopped by us
	}{
		{"active", "", running, running, "active/-", running, false},
		{"stopped", "", off, off, "stopped/-", off, false},
		{"error", "", running, running, "error/-", running, false},
		{"error", "powering-off", running, running, "error/powering-off", running, false},
		{"soft-delete", "", off, off, "soft-delete/-", off, false},
		{"building", "", 0, running, "error/-", running, false},
		{"building", "spawning", 0, running, "error/-", running, false},
		{"active", "spawning", running, running, "error/-", running, false},
		{"active", "powering-off", running, running, "stopped/-", off, true},
		{"active", "powering-off", running, off, "stopped/-", off, false},
		{"stopped", "powering-on", off, off, "active/-", running, false},
		{"stopped", "powering-on", off, running, "active/-", running, false},
		{"active", "rebooting", running, running, "active/rebooting", running, false}, // its message is still to come
		{"active", "rebooting_hard", running, running, "active/rebooting_hard", running, false},
		{"rescued", "reboot_started_hard", running, off, "rescued/-", running, false},
		{"active", "reboot_started", running, running, "active/-", running, false},
		{"active", "reboot_started", running, off, "active/-", running, false},
		{"active", "reboot_started_hard", running, off, "active/-", running, false},
		{"active", "reboot_pending", running, running, "active/-", running, true},
		{"active", "reboot_pending_hard", running, running, "active/-", running, true},
		{"active", "pausing", running, running, "paused/-", paused, false},
		{"active", "pausing", running, paused, "paused/-", paused, false},
		{"paused", "unpausing", paused, paused, "active/-", running, false},
		{"paused", "unpausing", paused, running, "active/-", running, false},
		{"active", "soft-deleting", running, running, "soft-delete/-", off, true},
		{"soft-delete", "restoring", off, off, "active/-", running, false},
		{"active", "image_snapshot", running, running, "active/-", running, false},
		{"active", "rebuilding", running, running, "error/-", running, false}, // as nova-compute, when nothing of it is in the journal
		{"active", "", running, off, "stopped/-", off, false},
		{"stopped", "", off, running, "stopped/-", off, true},
		{"paused", "", paused, off, "stopped/-", off, false},
	} {
		t.Run(c.vm+" "+c.task+" "+c.guest.String(), func(t *testing.T) {
			t.Parallel()
			w := built(t)
			before, _ := w.driver.Instance(uuid)
			w.driver.SetState(uuid, c.guest)
			w.nova.Update(uuid, map[string]any{"vm_state": c.vm, "task_state": nilIfEmpty(c.task), "power_state": int(c.power)})
			w.restarted()
			w.start()
			require.Equal(t, c.want+"/"+testHost, w.nova.States(uuid))
			guest, _ := w.driver.Instance(uuid)
			require.Equal(t, c.wantGuest, guest.State)
			if c.guest != off {
				require.Equal(t, c.stopped, guest.InitPID != before.InitPID, "a guest that runs as it should is not touched")
			}
		})
	}
}

func nilIfEmpty(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func TestSettleDeletes(t *testing.T) {
	t.Parallel()
	for vm, task := range map[string]string{"active": "deleting", "deleted": "", "error": "deleting", "soft-delete": "deleting", "building": "deleting"} {
		w := built(t)
		w.nova.Update(uuid, map[string]any{"vm_state": vm, "task_state": nilIfEmpty(task)})
		w.restarted()
		w.start()
		require.Equal(t, "true", w.nova.Field(uuid, "deleted"), vm)
		require.Empty(t, w.plugger.plugged())
		require.Empty(t, w.placement.Consumers())
	}
}

func TestSettleFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, task string
		setUp      func(w *world)
		want       string
	}{
		{"port not plugged", "", func(w *world) { w.trail.fail("plug", errBoom) }, "error/-/"},
		{"stop fails", "powering-off", func(w *world) { w.driver.Fail("Stop", "", errBoom) }, "active/-/"},
		{"reboot fails", "reboot_started", func(w *world) {
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.driver.Fail("Start", "", errBoom)
		}, "error/-/"},
		{"guest unknown", "pausing", func(w *world) { w.driver.Fail("Info", "", errBoom) }, "active/pausing/"},
		{"guest unknown in a reboot", "rebooting", func(w *world) { w.driver.Fail("Info", "", errBoom) }, "active/rebooting/"},
		{"no record", "", func(w *world) { require.NoError(w.t, w.removeFromHost(w.t.Context(), uuid)) }, "active/-/"},
		{"panic", "", func(w *world) {
			w.nova.On("Instance.save", func() { panic("a mistake") })
			w.driver.SetState(uuid, driver.PowerStateShutdown)
		}, "active/-/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.nova.Update(uuid, map[string]any{"task_state": nilIfEmpty(c.task)})
			w.restarted()
			c.setUp(w)
			w.start()
			require.Equal(t, c.want+testHost, w.nova.States(uuid))
		})
	}
}

// TestHostReboot: guests that ran come back if the operator wants it, else their servers are stopped.
func TestHostReboot(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		resume bool
		fail   error
		want   string
	}{{true, nil, "active/-/"}, {false, nil, "stopped/-/"}, {true, errBoom, "error/-/"}} {
		w := built(t, func(o *Options) { o.ResumeGuestsOnHostBoot = c.resume })
		w.driver.SetState(uuid, driver.PowerStateShutdown)
		w.plugger.ports = map[string]vif.VIF{}
		w.restarted()
		if c.fail != nil {
			w.driver.Fail("Start", "", c.fail)
		}
		w.start()
		require.Equal(t, c.want+testHost, w.nova.States(uuid))
		require.Equal(t, []string{"port-1"}, w.plugger.plugged(), "the wiring is back in any case")
	}
}

// TestLeftovers: only what Nova says is deleted, or on no host, is removed at a start.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		states map[string]any
		setUp  func(w *world)
		gone   bool
	}{
		{"deleted", map[string]any{"deleted": true}, nil, true},
		{"deleted, to be logged only", map[string]any{"deleted": true}, func(w *world) { w.Manager.opts.RunningDeletedAction = "log" }, false},
		{"deleted just now", map[string]any{"deleted": true, "deleted_at": time.Now().UTC().Format(time.RFC3339)}, func(w *world) {
			w.Manager.opts.RunningDeletedTimeout = time.Hour
		}, false},
		{"failed build", map[string]any{"vm_state": "error", "host": nil}, nil, true},
		{"moved", map[string]any{"host": "other"}, nil, false},
		{"unknown to nova", nil, func(w *world) { w.nova.RemoveInstance(uuid) }, false},
		{"conductor fails", map[string]any{"deleted": true}, func(w *world) { w.nova.Fail("Instance.get_by_uuid", errBoom) }, false},
		{"guest does not stop", map[string]any{"deleted": true}, func(w *world) { w.driver.Fail("Destroy", "", errBoom) }, false},
		{"list of guests fails", map[string]any{"deleted": true}, func(w *world) { w.driver.Fail("List", "", errBoom) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.nova.Update(uuid, c.states)
			w.restarted()
			if c.setUp != nil {
				c.setUp(w)
			}
			w.start()
			_, here := w.driver.Instance(uuid)
			require.Equal(t, c.gone, !here)
			if c.gone {
				require.Empty(t, w.plugger.plugged())
				_, ok, err := w.record(uuid)
				require.NoError(t, err)
				require.False(t, ok)
			}
		})
	}
}

func TestInitHost(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.restarted()
	w.start()
	require.Len(t, w.nova.Casts("update_instance_info"), 1)
	require.Empty(t, w.saves(), "a host where all is well changes nothing")

	w.restarted()
	w.nova.Fail("InstanceList.get_by_host", errBoom)
	require.ErrorIs(t, w.InitHost(t.Context()), errBoom)
	w.DB, w.journal = closedDB(t), journal.New(closedDB(t))
	require.Error(t, w.InitHost(t.Context()), "a journal that cannot be read")
}

// TestMessagesWaitForTheSettling: what comes first after a start does not meet an instance
// that is being settled.
func TestMessagesWaitForTheSettling(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.nova.Update(uuid, map[string]any{"task_state": "powering-off"})
	w.restarted()
	release := w.trail.block("root.unmount")
	require.NoError(t, w.InitHost(t.Context()))
	w.nova.Update(uuid, map[string]any{"task_state": "powering-on"}) // the user changed his mind
	done := make(chan error, 1)
	go func() {
		_, err := w.handler("start_instance")(user(t), rpc.Args{"instance": w.nova.Instance(uuid, "system_metadata")})
		done <- err
	}()
	release()
	require.NoError(t, <-done)
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}

// TestDamagedState: one record or entry that cannot be read keeps the agent neither from its start nor from other instances.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	w := built(t)
	const other = "5e5e5e5e-0000-4000-8000-000000000001"
	require.NoError(t, state.Put(w.DB, recordBucket, uuid, "damaged"))
	require.NoError(t, state.Put(w.DB, "journal", other, "damaged"))
	before, _ := w.driver.Instance(uuid)
	w.restarted()
	w.start()
	require.Equal(t, "error/-/"+testHost, w.nova.States(uuid))
	require.Len(t, w.nova.LogOf("InstanceFault.create"), 1)
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, before.InitPID, guest.InitPID, "the guest runs on")
	w.noJournal()
	local, err := w.localInstances(t.Context())
	require.NoError(t, err)
	require.Contains(t, local, uuid)
	_, err = listRecords(w.DB)
	require.ErrorIs(t, err, state.ErrDamaged, "images are not released on the word of some records")

	_, err = w.operate("terminate_instance", "deleting", nil)
	require.NoError(t, err)
	require.Empty(t, w.plugger.plugged())
	local, err = w.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
}
