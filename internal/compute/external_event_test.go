package compute

import (
	"encoding/json"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/rpc"
)

func externalEvent(name, tag string) map[string]any {
	return map[string]any{
		"nova_object.name": "InstanceExternalEvent", "nova_object.namespace": "nova", "nova_object.version": "1.5",
		"nova_object.data": map[string]any{"instance_uuid": uuid, "name": name, "status": "completed", "tag": tag},
	}
}

// builtWithOwnPort is a server with a port of the user's and one of its own.
func builtWithOwnPort(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.neutron.addPort("own")
	w.build(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"}, map[string]any{"network_id": networkID})})
	w.nova.ClearLog()
	w.trail.clear()
	return w
}

// TestNetworkChanged: the event's own info cache is of the past. What the build stored,
// above all whose the ports are, must not be lost.
func TestNetworkChanged(t *testing.T) {
	t.Parallel()
	w := builtWithOwnPort(t)
	stale := fieldsOf(t, w.nova.Instance(uuid))
	stale["info_cache"] = novatest.Object("InstanceInfoCache", novatest.Fields{"instance_uuid": novatest.Raw(uuid), "network_info": novatest.Raw("[]")})
	w.neutron.ports["own"]["status"] = "ACTIVE"
	_, err := w.call(t.Context(), "external_instance_event", rpc.Args{
		"instances": novatest.Raw([]any{novatest.Object("Instance", stale)}),
		"events":    novatest.Raw([]any{externalEvent(eventNetworkChanged, "own"), externalEvent(eventNetworkChanged, "port-2")}),
	})
	require.NoError(t, err)
	info := w.instance("info_cache").NetworkInfo()
	require.Len(t, info, 2)
	require.Equal(t, "own", info[0].ID)
	require.True(t, info[0].Active)
	require.True(t, info[0].PreserveOnDelete, "a delete must not take the user's port")
	require.Len(t, w.nova.LogOf("InstanceInfoCache.save"), 1, "one refresh reads all ports")
}

// TestNetworkChangedDuringTheBuild: the cache is the build's to write, and what it did not
// see is read at its end.
func TestNetworkChangedDuringTheBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plugEvents("completed")
	w.nova.On("InstanceInfoCache.save", func() {
		w.nova.On("InstanceInfoCache.save", nil)
		w.event(eventNetworkChanged, "port-1", "completed")
		w.neutron.mu.Lock()
		defer w.neutron.mu.Unlock()
		w.neutron.ports["port-1"]["status"] = "ACTIVE"
	})
	_, err := w.call(user(t), "build_and_run_instance", w.buildArgs(nil))
	require.NoError(t, err)
	require.True(t, w.instance("info_cache").NetworkInfo()[0].Active)
	require.Len(t, w.nova.LogOf("InstanceInfoCache.save"), 2)
}

func TestEventsThatChangeNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		event  string
		states map[string]any
	}{
		"deleted":              {eventNetworkChanged, map[string]any{"vm_state": "deleted"}},
		"being deleted":        {eventNetworkChanged, map[string]any{"task_state": "deleting"}},
		"port of a deleted":    {eventVIFDeleted, map[string]any{"task_state": "deleting"}},
		"another's":            {"accelerator-request-bound", nil},
		"reimaged":             {"volume-reimaged", nil},
		"of a deleted":         {eventVolumeExtended, map[string]any{"vm_state": "deleted"}},
		"nobody waits":         {eventVIFPlugged, nil},
		"nobody waits for end": {eventVIFUnplugged, nil},
	} {
		w := built(t)
		w.nova.Update(uuid, c.states)
		w.event(c.event, "port-1", "completed")
		w.drain()
		require.Empty(t, w.nova.Log(), name)
		require.Empty(t, w.trail.all(), name)
	}
	w := built(t)
	_, err := w.call(t.Context(), "external_instance_event", rpc.Args{
		"instances": novatest.Raw([]any{}), "events": novatest.Raw([]any{externalEvent(eventNetworkChanged, "p"), externalEvent(eventVIFDeleted, "p")}),
	})
	require.NoError(t, err, "events about servers that are not in the message")
	require.Empty(t, w.nova.Log())
}

func TestUnreadableEvents(t *testing.T) {
	t.Parallel()
	w := built(t)
	good := w.eventArgs(eventVIFPlugged, "p", "completed")
	for name, change := range map[string]rpc.Args{
		"instances": {"instances": json.RawMessage("7")}, "events": {"events": json.RawMessage("7")},
		"null instance": {"instances": json.RawMessage("[null]")}, "null event": {"events": json.RawMessage("[null]")},
	} {
		args := rpc.Args{"instances": good["instances"], "events": good["events"]}
		maps.Copy(args, change)
		_, err := w.call(t.Context(), "external_instance_event", args)
		require.Error(t, err, name)
	}
	list := novatest.Object("InstanceList", novatest.Fields{"objects": good["instances"]})
	_, err := w.call(t.Context(), "external_instance_event", rpc.Args{"instances": list, "events": good["events"]})
	require.NoError(t, err, "an InstanceList is a list, too")
}

// TestPluggedIsNotDelayed: a waiter is woken before the refreshes of the same message.
func TestPluggedIsNotDelayed(t *testing.T) {
	t.Parallel()
	w := built(t)
	expected := w.waiters.Expect(uuid, eventVIFPlugged, "port-1")
	unlock, err := w.caches.Lock(t.Context(), uuid)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := w.handler("external_instance_event")(t.Context(), rpc.Args{
			"instances": novatest.Raw([]any{w.nova.Instance(uuid)}),
			"events":    novatest.Raw([]any{externalEvent(eventNetworkChanged, "port-1"), externalEvent(eventVIFPlugged, "port-1")}),
		})
		done <- err
	}()
	status, err := expected.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, "completed", status)
	unlock()
	require.NoError(t, <-done)
}

// TestBurstOfEvents: many events about one server cost few refreshes.
func TestBurstOfEvents(t *testing.T) {
	t.Parallel()
	w := built(t)
	unlock, err := w.caches.Lock(t.Context(), uuid)
	require.NoError(t, err)
	const events = 20
	var all sync.WaitGroup
	var ended atomic.Int32
	for range events {
		all.Go(func() {
			w.event(eventNetworkChanged, "port-1", "completed")
			ended.Add(1)
		})
	}
	eventually(t, "one waits", func() bool {
		w.refreshes.mu.Lock()
		defer w.refreshes.mu.Unlock()
		return w.refreshes.waiting[uuid]
	})
	eventually(t, "the others leave it to that one", func() bool { return ended.Load() == events-1 })
	unlock()
	all.Wait()
	require.Less(t, len(w.nova.LogOf("InstanceInfoCache.save")), 5)
	require.Empty(t, w.refreshes.waiting)
}

func TestVIFDeleted(t *testing.T) {
	t.Parallel()
	w := builtWithOwnPort(t)
	w.neutron.remove("port-2")
	w.event(eventVIFDeleted, "port-2", "completed")
	w.drain()
	info := w.instance("info_cache").NetworkInfo()
	require.Len(t, info, 1)
	require.Equal(t, "own", info[0].ID)
	require.Equal(t, []string{"own"}, w.plugger.plugged())
	rec, _, err := w.record(uuid)
	require.NoError(t, err)
	require.Len(t, rec.VIFs, 1)
	w.nova.ClearLog()
	w.event(eventVIFDeleted, "port-2", "completed")
	w.drain()
	require.Empty(t, w.nova.LogOf("InstanceInfoCache.save"), "a port that is not in the cache")

	w.trail.fail("unplug", errBoom)
	w.event(eventVIFDeleted, "own", "completed")
	w.drain()
	require.Empty(t, w.instance("info_cache").NetworkInfo(), "what cannot be unplugged is gone all the same")
}

// TestVIFDeletedWaitsForOperations: the record belongs to the operation under way.
func TestVIFDeletedWaitsForOperations(t *testing.T) {
	t.Parallel()
	w := built(t)
	unlock, err := w.locks.Lock(t.Context(), uuid)
	require.NoError(t, err)
	w.event(eventVIFDeleted, "port-1", "completed") // the worker is free again
	require.Never(t, func() bool { return len(w.trail.all()) > 0 }, 20*time.Millisecond, time.Millisecond)
	unlock()
	w.drain()
	require.Empty(t, w.plugger.plugged())
}

func TestEventFailures(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.neutron.setDown(true)
	w.event(eventNetworkChanged, "port-1", "completed")
	w.neutron.setDown(false)
	require.Len(t, w.instance("info_cache").NetworkInfo(), 1, "a cache that cannot be refreshed stays")
	w.nova.Fail("InstanceInfoCache.get_by_instance_uuid", novatest.Failure("InstanceInfoCacheNotFound"))
	w.event(eventVIFDeleted, "port-1", "completed")
	w.drain()
	require.Equal(t, []string{"port-1"}, w.plugger.plugged())
	w.nova.Fail("InstanceInfoCache.save", errBoom)
	w.event(eventVIFDeleted, "port-1", "completed")
	w.drain()
	require.Empty(t, w.plugger.plugged(), "the port is gone, whatever the cache says")
}

func TestInjectNetworkInfo(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("inject_network_info", "", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"InstanceInfoCache.get_by_instance_uuid", `InstanceInfoCache.save instance_uuid="` + uuid + `" network_info`}, w.nova.Log())
	w.neutron.setDown(true)
	_, err = w.operate("inject_network_info", "", nil)
	require.Error(t, err)
}

// TestEventsThatAreRefused: the server's history says so, and the server stays as it is.
func TestEventsThatAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ tag, event, class string }{
		eventVolumeExtended: {"vol-1", "compute_extend_volume", "ExtendVolumeNotSupported"},
		eventPowerUpdate:    {"POWER_OFF", "compute_power_update", "NotImplementedError"},
	} {
		w := built(t)
		w.event(name, c.tag, "completed")
		w.drain()
		require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
		require.Len(t, w.nova.Faults(), 1, name)
		require.Len(t, w.nova.LogOf("InstanceActionEvent"), 2, name)
		require.Empty(t, w.trail.all(), name)
	}
}

// TestEventOfAnyName wakes whoever waits for it.
func TestEventOfAnyName(t *testing.T) {
	t.Parallel()
	w := built(t)
	expected := w.waiters.Expect(uuid, "volume-reimaged", "vol-1")
	w.event("volume-reimaged", "vol-1", "completed")
	status, err := expected.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, "completed", status)
}
