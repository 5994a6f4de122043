package compute

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

func TestRunTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{opts: Options{PeriodicFuzzyDelay: time.Minute}}
		var runs []time.Duration
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- m.runTask(ctx, task{"test", 10 * time.Second, func(context.Context) error {
				runs = append(runs, time.Since(start))
				switch len(runs) {
				case 1:
					return errBoom
				case 2:
					panic("a mistake")
				}
				return nil
			}})
		}()
		time.Sleep(35 * time.Second)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.GreaterOrEqual(t, len(runs), 3, "a failure or a panic does not end the task")
		require.LessOrEqual(t, runs[0], 10*time.Second, "the first run is spread over the fuzzy delay, and at most an interval away")
		require.Equal(t, 10*time.Second, runs[2]-runs[1])
	})
}

func TestTaskIntervals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) {
		o.UpdateResourcesInterval, o.SyncPowerStateInterval, o.SchedulerSyncInterval = -1, -1, -1
		o.RunningDeletedInterval, o.HealInfoCacheInterval, o.InstanceDeleteInterval = -1, 0, -1
	})
	intervals := map[string]time.Duration{}
	for _, task := range w.tasks() {
		intervals[task.name] = task.interval
	}
	require.Negative(t, intervals["heal_instance_info_cache"], "of this option alone 0 is off")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.RunPeriodicTasks(ctx), context.DeadlineExceeded)
	require.Empty(t, w.nova.Log())
}

func TestHealInfoCache(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.neutron.ports["port-1"]["status"] = "ACTIVE"
	require.NoError(t, w.healInfoCache(t.Context()))
	require.True(t, w.instance("info_cache").NetworkInfo()[0].Active)
	for name, states := range map[string]map[string]any{
		"busy": {"task_state": "rebooting"}, "building": {"task_state": nil, "vm_state": "building"}, "moved": {"vm_state": "active", "host": "other"},
		"deleted": {"deleted": true},
	} {
		w.nova.ClearLog()
		w.nova.Update(uuid, states)
		require.NoError(t, w.healInfoCache(t.Context()), name)
		require.Empty(t, w.nova.LogOf("InstanceInfoCache"), name)
	}
	w.nova.Fail("Instance.get_by_uuid", errBoom)
	require.ErrorIs(t, w.healInfoCache(t.Context()), errBoom)
	require.NoError(t, newWorld(t).healInfoCache(t.Context()), "an empty host")
}

func TestSyncScheduler(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, w.syncScheduler(t.Context()))
	casts := w.nova.Casts("sync_instance_info")
	require.Len(t, casts, 1)
	require.JSONEq(t, "[]", string(casts[0].Args["instance_uuids"]), "none is said, too")
	w.nova.Fail("sync_instance_info", errBoom)
	require.NoError(t, w.syncScheduler(t.Context()))
	w = newWorld(t, func(o *Options) { o.TrackInstanceChanges = false })
	require.NoError(t, w.syncScheduler(t.Context()))
	require.Empty(t, w.nova.Log())
}

func TestReapDeleted(t *testing.T) {
	t.Parallel()
	for action, want := range map[string]driver.PowerState{
		"reap": driver.PowerStateNoState, "shutdown": driver.PowerStateShutdown, "log": driver.PowerStateRunning, "noop": driver.PowerStateRunning,
	} {
		w := built(t, func(o *Options) { o.RunningDeletedAction = action })
		require.NoError(t, w.reapDeleted(t.Context()))
		guest, _ := w.driver.Instance(uuid)
		require.Equal(t, driver.PowerStateRunning, guest.State, "a server that lives")

		w.nova.Update(uuid, map[string]any{"deleted": true}) // by the API, while the agent was away
		w.Tracker.Forget(t.Context(), uuid)
		w.nova.Fail("Instance.get_by_uuid", errBoom)
		require.NoError(t, w.reapDeleted(t.Context()))
		guest, _ = w.driver.Instance(uuid)
		require.Equal(t, driver.PowerStateRunning, guest.State, "nobody knows")
		w.driver.Fail("Destroy", "", errBoom)
		w.driver.Fail("Stop", "", errBoom)
		for range 2 {
			require.NoError(t, w.reapDeleted(t.Context()))
		}
		state, err := w.powerState(t.Context(), uuid)
		require.NoError(t, err)
		require.Equal(t, want, state, action)
	}
	w := built(t, func(o *Options) { o.RunningDeletedTimeout = time.Hour })
	w.nova.Update(uuid, map[string]any{"deleted": true, "deleted_at": time.Now().UTC().Format(time.RFC3339)})
	w.Tracker.Forget(t.Context(), uuid)
	require.NoError(t, w.reapDeleted(t.Context()))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State, "its time is not over")
	w.nova.Update(uuid, map[string]any{"deleted_at": time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)})
	w.driver.Fail("List", "", errBoom)
	require.ErrorIs(t, w.reapDeleted(t.Context()), errBoom)
	require.NoError(t, w.reapDeleted(t.Context()))
	_, here := w.driver.Instance(uuid)
	require.False(t, here)
}

func TestReclaim(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.ReclaimInstanceInterval = time.Hour })
	old := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	w.nova.Update(uuid, map[string]any{"vm_state": "soft-delete", "deleted_at": time.Now().UTC().Format(time.RFC3339)})
	require.NoError(t, w.reclaimDeleted(t.Context()))
	require.Equal(t, "soft-delete/-/"+testHost, w.nova.States(uuid), "its time is not over")

	w.nova.Update(uuid, map[string]any{"deleted_at": old})
	w.nova.On("Instance.save", func() { w.nova.Update(uuid, map[string]any{"task_state": "restoring"}) }) // the owner is faster
	require.NoError(t, w.reclaimDeleted(t.Context()))
	require.Equal(t, "soft-delete/restoring/"+testHost, w.nova.States(uuid))

	w.nova.On("Instance.save", nil)
	w.nova.Update(uuid, map[string]any{"task_state": nil})
	require.NoError(t, w.reclaimDeleted(t.Context()))
	require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
	require.Empty(t, w.neutron.state())

	w.nova.Fail("InstanceList.get_by_filters", errBoom)
	require.ErrorIs(t, w.reclaimDeleted(t.Context()), errBoom)
	w.Manager.opts.ReclaimInstanceInterval = 0
	require.NoError(t, w.reclaimDeleted(t.Context()))
}
