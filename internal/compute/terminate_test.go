package compute

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

func TestTerminate(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.sender.clear()
	_, err := w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	lanes := w.lanes()
	lanes["guest"] = lanes["guest"][2:] // the build's
	transcript(t, "terminate", lanes)
	require.Equal(t, "deleted/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
	require.Equal(t, "0", w.nova.Field(uuid, "power_state"))
	require.Empty(t, w.placement.Consumers())
	require.Empty(t, w.neutron.state())
	local, err := w.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
	require.Len(t, w.nova.Casts("delete_instance_info"), 1)
}

// TestTerminateEveryState: a delete succeeds whatever became of the server, and when it is repeated.
func TestTerminateEveryState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setUp func(w *world)
	}{
		{"running", nil},
		{"stopped", func(w *world) { w.driver.SetState(uuid, driver.PowerStateShutdown) }},
		{"paused", func(w *world) { w.driver.SetState(uuid, driver.PowerStatePaused) }},
		{"in error", func(w *world) { w.nova.Update(uuid, map[string]any{"vm_state": "error"}) }},
		{"soft-deleted", func(w *world) { w.nova.Update(uuid, map[string]any{"vm_state": "soft-delete"}) }},
		{"guest is gone", func(w *world) { require.NoError(w.t, w.Driver.Destroy(w.t.Context(), uuid)) }},
		{"host knows nothing", func(w *world) { require.NoError(w.t, w.removeFromHost(w.t.Context(), uuid)) }},
		{"ports are gone", func(w *world) { w.neutron.remove("port-1") }},
		{"allocation is gone", func(w *world) { _, _ = w.Placement.DeleteAllocation(w.t.Context(), uuid) }},
		{"placement is down", func(w *world) { w.placement.SetDown(true) }},
		{"request without info cache", func(w *world) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			if c.setUp != nil {
				c.setUp(w)
			}
			w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateDeleting})
			args := rpc.Args{"instance": w.nova.Instance(uuid)}
			for range 2 {
				_, err := w.call(user(t), "terminate_instance", args)
				require.NoError(t, err)
				require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
				require.Empty(t, w.neutron.state())
				require.Empty(t, w.nova.Faults())
			}
			require.Empty(t, w.plugger.plugged())
			require.Empty(t, w.Tracker.Instances())
		})
	}
}

// TestTerminateKeepsTheUsersPorts: whatever the request's info cache says.
func TestTerminateKeepsTheUsersPorts(t *testing.T) {
	t.Parallel()
	for _, attrs := range [][]string{{"info_cache"}, nil} {
		w := newWorld(t)
		w.neutron.addPort("own")
		w.build(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"}, map[string]any{"network_id": networkID})})
		args := rpc.Args{"instance": w.nova.Instance(uuid, attrs...)}
		_, err := w.call(user(t), "terminate_instance", args)
		require.NoError(t, err)
		require.Equal(t, []string{"own=@"}, w.neutron.state())
	}
	// The API read the row before the build stored the ports.
	w := newWorld(t)
	w.neutron.addPort("own")
	args := w.buildArgs(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"})})
	stale := instanceOn(t, args["instance"])
	w.plugEvents("completed")
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	_, err = w.call(user(t), "terminate_instance", rpc.Args{"instance": stale})
	require.NoError(t, err)
	require.Equal(t, []string{"own=@"}, w.neutron.state())
}

// TestTerminateFails: what cannot be removed leaves an instance in ERROR that can be deleted again.
func TestTerminateFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setUp func(w *world)
		class string
		ports []string
	}{
		{"guest does not stop", func(w *world) { w.driver.Fail("Destroy", "", driver.ErrTimeout) }, "InstancePowerOffFailure", []string{"port-1=" + uuid + "@" + testHost}},
		{"disk is busy", func(w *world) { w.trail.fail("root.delete", errBoom) }, "", []string{}},
		{"port stays", func(w *world) { w.trail.fail("DELETE /ports/port-1", errBoom) }, "", []string{"port-1=" + uuid + "@" + testHost}},
		{"ports cannot be told apart", func(w *world) {
			w.nova.Fail("InstanceInfoCache.get_by_instance_uuid", novatest.Failure("DBError"))
			w.nova.SetNetworkInfo(uuid, "[]")
		}, "DBError", []string{"port-1=" + uuid + "@" + testHost}},
		{"row not destroyed", func(w *world) { w.nova.Fail("Instance.destroy", novatest.Failure("ObjectActionError")) }, "ObjectActionError", []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			c.setUp(w)
			_, err := w.operate("terminate_instance", object.TaskStateDeleting, nil)
			require.Error(t, err)
			if c.class != "" {
				require.True(t, exception.Is(err, c.class), "%v", err)
			}
			require.True(t, strings.HasPrefix(w.nova.States(uuid), "error/-/"), w.nova.States(uuid))
			require.Len(t, w.nova.Faults(), 1)
			require.Equal(t, c.ports, w.neutron.state(), "the ports of a guest that may run are not free")
			_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
			require.NoError(t, err)
			require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
			require.Empty(t, w.neutron.state())
			require.Empty(t, w.plugger.plugged())
		})
	}
}

func TestRemoveFromHostKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.trail.fail("unplug", errBoom)
	require.ErrorContains(t, w.removeFromHost(t.Context(), uuid), "unplug port port-1: boom")
	ranges, err := w.DB.Ranges()
	require.NoError(t, err)
	require.Len(t, ranges, 1, "ids are free only when nothing of them is left")
	_, ok, err := w.record(uuid)
	require.NoError(t, err)
	require.True(t, ok)
	for range 2 {
		require.NoError(t, w.removeFromHost(t.Context(), uuid))
	}
	ranges, err = w.DB.Ranges()
	require.NoError(t, err)
	require.Empty(t, ranges)
}
