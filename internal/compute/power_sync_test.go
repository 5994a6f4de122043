package compute

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
)

// TestPowerSync is the table of nova/compute/manager.py:_sync_instance_power_state.
func TestPowerSync(t *testing.T) {
	t.Parallel()
	const (
		none, running, paused = driver.PowerStateNoState, driver.PowerStateRunning, driver.PowerStatePaused
		off, crashed, frozen  = driver.PowerStateShutdown, driver.PowerStateCrashed, driver.PowerStateSuspended
	)
	for _, c := range []struct {
		vm, task string
		guest    driver.PowerState
		want     string // vm_state/power_state
		stop     bool
	}{
		{"active", "", running, "active/1", false},
		{"active", "", off, "stopped/4", true},
		{"active", "", crashed, "stopped/4", true},
		{"active", "", frozen, "stopped/4", true},
		{"active", "", paused, "active/3", false},
		{"active", "", none, "active/0", false},
		{"stopped", "", running, "stopped/4", true},
		{"stopped", "", paused, "stopped/4", true},
		{"stopped", "", off, "stopped/4", false},
		{"stopped", "", none, "stopped/0", false},
		{"paused", "", off, "stopped/4", true},
		{"paused", "", crashed, "stopped/4", true},
		{"paused", "", running, "paused/1", false},
		{"error", "", off, "error/4", false},
		{"soft-delete", "", running, "soft-delete/1", false},
		{"active", "rebooting", off, "active/9", false},
		{"active", "deleting", off, "active/9", false},
	} {
		t.Run(c.vm+" "+c.task+" "+c.guest.String(), func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.nova.Update(uuid, map[string]any{"vm_state": c.vm, "task_state": nilIfEmpty(c.task), "power_state": 9})
			if c.guest == none {
				require.NoError(t, w.Driver.Destroy(t.Context(), uuid))
			} else {
				w.driver.SetState(uuid, c.guest)
			}
			require.NoError(t, w.syncPowerStates(t.Context()))
			require.Equal(t, c.want, w.nova.Field(uuid, "vm_state")+"/"+w.nova.Field(uuid, "power_state"))
			actions := w.nova.LogOf("InstanceAction.action_start")
			if !c.stop {
				require.Empty(t, actions)
				return
			}
			require.Equal(t, []string{"InstanceAction.action_start stop"}, actions, "the owner finds it in the server's history")
			require.Contains(t, w.saves(), `Instance.save progress=0 task_state="powering-off" if task_state=[null]`)
			require.Equal(t, "-", w.nova.Field(uuid, "task_state"))
		})
	}
}

// TestWatchGuests: a poweroff inside stops the server at once; our own stops are left to
// the operation that does them.
func TestWatchGuests(t *testing.T) {
	t.Parallel()
	w := built(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.WatchGuests(ctx) }()
	eventually(t, "events arrive", func() bool {
		if w.nova.States(uuid) == "stopped/-/"+testHost {
			return true
		}
		w.driver.SetState(uuid, driver.PowerStateRunning) // until the first is heard of, nobody may listen yet
		w.driver.SetState(uuid, driver.PowerStateShutdown)
		return false
	})
	w.drain()
	w.nova.ClearLog()
	_, err := w.operate("start_instance", "powering-on", nil)
	require.NoError(t, err)
	_, err = w.operate("reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"})
	require.NoError(t, err)
	_, err = w.operate("stop_instance", "powering-off", nil)
	require.NoError(t, err)
	_, err = w.operate("terminate_instance", "deleting", nil)
	require.NoError(t, err)
	w.drain()
	require.Empty(t, w.nova.LogOf("InstanceAction.action_start"))
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestSettled(t *testing.T) {
	t.Parallel()
	w := built(t)
	require.NoError(t, w.syncPowerStates(t.Context()))
	require.Equal(t, []string{"InstanceList.get_by_host"}, w.nova.Log(), "servers that agree with their guests cost nothing")
	for _, c := range []struct {
		vm    string
		guest driver.PowerState
		want  bool
	}{
		{"active", driver.PowerStateRunning, true},
		{"active", driver.PowerStatePaused, true},
		{"active", driver.PowerStateShutdown, false},
		{"stopped", driver.PowerStateRunning, false},
		{"stopped", driver.PowerStateShutdown, true},
		{"soft-delete", driver.PowerStateRunning, false},
		{"error", driver.PowerStateRunning, true},
	} {
		require.Equal(t, c.want, settled(c.vm, c.guest), "%s %s", c.vm, c.guest)
	}
}

// TestFollowGuestReadsUnderTheLock: what an operation has stored meanwhile counts, not
// what the row was when the event came.
func TestFollowGuestReadsUnderTheLock(t *testing.T) {
	t.Parallel()
	w := built(t)
	unlock, err := w.locks.Lock(t.Context(), uuid)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		done <- w.guestChanged(t.Context(), driver.Event{UUID: uuid, PowerState: driver.PowerStateShutdown})
	}()
	w.driver.SetState(uuid, driver.PowerStateShutdown)
	w.nova.Update(uuid, map[string]any{"vm_state": "stopped", "power_state": 4})
	unlock()
	require.NoError(t, <-done)
	require.Empty(t, w.saves())

	require.NoError(t, w.guestChanged(t.Context(), driver.Event{UUID: "unknown", PowerState: driver.PowerStateShutdown}))
	require.NoError(t, w.guestChanged(t.Context(), driver.Event{UUID: uuid, PowerState: driver.PowerStateRunning}), "a start is always ours")
	w.nova.Update(uuid, map[string]any{"vm_state": "active", "host": "other"})
	require.NoError(t, w.followGuest(t.Context(), uuid))
	require.Empty(t, w.saves(), "an instance that moved is not ours")
}

func TestPowerSyncFailures(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.SetState(uuid, driver.PowerStateShutdown)
	w.nova.Fail("InstanceList.get_by_host", errBoom)
	require.ErrorIs(t, w.syncPowerStates(t.Context()), errBoom)
	w.nova.Fail("Instance.get_by_uuid", errBoom)
	require.NoError(t, w.syncPowerStates(t.Context()), "one that fails does not keep the others waiting")
	w.driver.Fail("Info", "", errBoom)
	require.NoError(t, w.syncPowerStates(t.Context()))
	w.nova.Fail("Instance.save", nil, novatest.Failure("UnexpectedTaskStateError"))
	require.NoError(t, w.followGuest(t.Context(), uuid), "somebody asked for something meanwhile")
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.nova.Fail("InstanceAction.action_start", errBoom)
	require.NoError(t, w.followGuest(t.Context(), uuid))
	require.Equal(t, "stopped/-/"+testHost, w.nova.States(uuid))
	w.nova.Update(uuid, map[string]any{"vm_state": "active"})
	w.nova.Fail("Instance.save", errBoom)
	require.ErrorIs(t, w.followGuest(t.Context(), uuid), errBoom)
	unlock, err := w.locks.Lock(t.Context(), uuid)
	require.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, w.followGuest(ctx, uuid), context.Canceled)
}
