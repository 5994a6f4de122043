package compute

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// attachArgs are the arguments of attach_interface besides the instance.
func attachArgs(change map[string]any) map[string]any {
	args := map[string]any{"network_id": networkID, "port_id": nil, "requested_ip": nil, "tag": nil}
	maps.Copy(args, change)
	return args
}

// interfaces are the names of the guest's interfaces by port.
func (w *world) interfaces() map[string]string {
	w.t.Helper()
	i, _ := w.driver.Instance(uuid)
	names := map[string]string{}
	for _, nic := range i.NICs {
		names[nic.PortID] = nic.Name
	}
	return names
}

func (w *world) portIDs() []string {
	w.t.Helper()
	ids := []string{}
	for _, v := range w.instance("info_cache").NetworkInfo() {
		ids = append(ids, v.ID)
	}
	return ids
}

// unchanged requires that a server with its one port is as it was.
func (w *world) unchanged() {
	w.t.Helper()
	require.Equal(w.t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(w.t, []string{"port-1"}, w.portIDs())
	require.Equal(w.t, []string{"port-1"}, w.plugger.plugged())
	require.Equal(w.t, map[string]string{"port-1": "eth0"}, w.interfaces())
	require.Equal(w.t, 1, w.nova.VIFs(uuid))
	rec, _, err := w.record(uuid)
	require.NoError(w.t, err)
	require.Nil(w.t, rec.PortChange)
	require.Len(w.t, rec.VIFs, 1)
	require.Equal(w.t, map[string]string{"port-1": "eth0"}, rec.Names)
}

func TestAttachInterface(t *testing.T) {
	t.Parallel()
	w := built(t)
	result, err := w.operate("attach_interface", "", attachArgs(nil))
	require.NoError(t, err)
	added, ok := result.(*object.VIF)
	require.True(t, ok)
	require.Equal(t, "port-2", added.ID)
	require.False(t, added.PreserveOnDelete)
	require.Equal(t, map[string]string{"port-1": "eth0", "port-2": "eth1"}, w.interfaces())
	require.Equal(t, []string{"port-1", "port-2"}, w.portIDs())
	require.Equal(t, []string{"port-1", "port-2"}, w.plugger.plugged())
	require.Equal(t, 2, w.nova.VIFs(uuid))
	require.Contains(t, w.neutron.state(), "port-2="+uuid+"@"+testHost)
	require.Empty(t, w.nova.Faults())
	requireLines(t, `
		InstanceActionEvent.event_start
		VirtualInterface.create
		InstanceInfoCache.get_by_instance_uuid
		InstanceInfoCache.save
		InstanceActionEvent.event_finish_with_failure
	`, methodsOf(w.nova.LogOf("InstanceActionEvent", "VirtualInterface", "InstanceInfoCache", "Instance.save", "InstanceDeviceMetadata")))

	// The same keys in the same order as nova-compute's answer.
	require.Equal(t, keysOf(t, capturedVIF(t)), keysOf(t, mustJSON(t, result)))
}

// methodsOf are the lines of a log without what follows the method.
func methodsOf(log []string) []string {
	methods := make([]string, 0, len(log))
	for _, line := range log {
		method, _, _ := strings.Cut(line, " ")
		method, _, _ = strings.Cut(method, "{")
		methods = append(methods, method)
	}
	return methods
}

// capturedVIF is what nova-compute answers to attach_interface.
func capturedVIF(t *testing.T) json.RawMessage {
	t.Helper()
	for _, m := range capture.Operation(t, "zed", "interface-attach-net") {
		var vif map[string]json.RawMessage
		if len(m.Result) > 0 && json.Unmarshal(m.Result, &vif) == nil && vif["qbh_params"] != nil {
			return m.Result
		}
	}
	t.Fatal("no answer with a VIF in the capture")
	return nil
}

func mustJSON(t *testing.T, v any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	return raw
}

func keysOf(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var d object.Dict
	require.NoError(t, json.Unmarshal(raw, &d))
	return d.Keys()
}

// TestAttachedOrder: a port keeps its name for life, the first free one is given next, and a
// start brings them all.
func TestAttachedOrder(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.neutron.addPort("own")
	attach := func(change map[string]any) {
		t.Helper()
		_, err := w.operate("attach_interface", "", attachArgs(change))
		require.NoError(t, err)
	}
	attach(map[string]any{"network_id": nil, "port_id": "own"})
	attach(nil)
	want := map[string]string{"port-1": "eth0", "own": "eth1", "port-3": "eth2"}
	require.Equal(t, want, w.interfaces())
	_, err := w.operate("detach_interface", "", map[string]any{"port_id": "own"})
	require.NoError(t, err)
	delete(want, "own")
	require.Equal(t, want, w.interfaces())
	require.Contains(t, w.neutron.state(), "own=@", "the user's port stays")

	_, err = w.operate("stop_instance", object.TaskStatePoweringOff, map[string]any{"clean_shutdown": false})
	require.NoError(t, err)
	require.Equal(t, []string{"port-1", "port-3"}, w.plugger.plugged(), "a stopped server keeps its place in the network")
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.Equal(t, want, w.interfaces())
	attach(nil)
	want["port-4"] = "eth1"
	require.Equal(t, want, w.interfaces())
	_, err = w.operate("reboot_instance", object.TaskStateRebootingHard, map[string]any{"reboot_type": "HARD"})
	require.NoError(t, err)
	require.Equal(t, want, w.interfaces())
}

func TestAttachToAStoppedServer(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("stop_instance", object.TaskStatePoweringOff, map[string]any{"clean_shutdown": false})
	require.NoError(t, err)
	_, err = w.operate("attach_interface", "", attachArgs(nil))
	require.NoError(t, err)
	require.Equal(t, []string{"port-1", "port-2"}, w.plugger.plugged())
	_, err = w.operate("detach_interface", "", map[string]any{"port_id": "port-1"})
	require.NoError(t, err)
	require.Equal(t, "stopped/-/"+testHost, w.nova.States(uuid))
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"port-2": "eth1"}, w.interfaces())
}

func TestAttachFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args    map[string]any
		prepare func(w *world)
		class   string
	}{
		"unknown port":    {map[string]any{"port_id": "nobody", "network_id": nil}, nil, "PortNotFound"},
		"port in use":     {map[string]any{"port_id": "port-1", "network_id": nil}, nil, "PortInUse"},
		"unknown network": {map[string]any{"network_id": "nowhere"}, nil, "NetworkNotFound"},
		"another project's": {map[string]any{"port_id": "own", "network_id": nil}, func(w *world) {
			w.neutron.addPort("own")
			w.neutron.ports["own"]["tenant_id"] = "other"
		}, "PortNotUsable"},
		"direct": {map[string]any{"port_id": "own", "network_id": nil}, func(w *world) {
			w.neutron.addPort("own")
			w.neutron.ports["own"]["binding:vnic_type"] = "direct"
		}, "InterfaceAttachPciClaimFailed"},
		"bandwidth": {map[string]any{"port_id": "own", "network_id": nil}, func(w *world) {
			w.neutron.addPort("own")
			w.neutron.ports["own"]["resource_request"] = map[string]any{"request_groups": []any{map[string]any{"id": "g"}}, "required": []any{"T"}}
		}, "InterfaceAttachResourceAllocationFailed"},
		"binding":       {nil, func(w *world) { w.neutron.set("binding_failed", "DOWN") }, "PortBindingFailed"},
		"plug":          {nil, func(w *world) { w.trail.fail("plug", errBoom) }, "InterfaceAttachFailed"},
		"guest":         {nil, func(w *world) { w.driver.Fail("AttachNIC", uuid, errBoom) }, "InterfaceAttachFailed"},
		"name is taken": {nil, func(w *world) { w.driver.Fail("AttachNIC", uuid, driver.ErrExists) }, "InterfaceAttachFailed"},
		"row":           {nil, func(w *world) { w.nova.Fail("VirtualInterface.create", errBoom) }, "InterfaceAttachFailed"},
		"cache":         {nil, func(w *world) { w.nova.Fail("InstanceInfoCache.save", errBoom) }, "InterfaceAttachFailed"},
		"devices":       {map[string]any{"tag": "web"}, func(w *world) { w.nova.Fail("Instance.save", errBoom) }, "InterfaceAttachFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			if c.prepare != nil {
				c.prepare(w)
			}
			_, err := w.operate("attach_interface", "", attachArgs(c.args))
			require.True(t, exception.Is(err, c.class), "%v", err)
			w.unchanged()
			require.Len(t, w.nova.Faults(), 1)
			for _, port := range w.neutron.state() {
				require.True(t, port == "port-1="+uuid+"@"+testHost || port == "own=@", port)
			}
			// Nothing stands in the way of the next.
			w.neutron.set("bridge", "DOWN")
			_, err = w.operate("attach_interface", "", attachArgs(nil))
			require.NoError(t, err)
			require.Len(t, w.interfaces(), 2)
		})
	}
}

func TestAttachToAServerThatIsNotHere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.buildArgs(nil)
	_, err := w.operate("attach_interface", "", attachArgs(nil))
	require.True(t, exception.Is(err, "InstanceNotFound"), "%v", err)
	require.Empty(t, w.neutron.state())
}

func TestDetachInterface(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("attach_interface", "", attachArgs(map[string]any{"tag": "web"}))
	require.NoError(t, err)
	require.Contains(t, w.nova.Field(uuid, "device_metadata"), `"tags":["web"]`)
	w.nova.ClearLog()
	_, err = w.operate("detach_interface", "", map[string]any{"port_id": "port-2"})
	require.NoError(t, err)
	w.unchanged()
	require.NotContains(t, w.nova.Field(uuid, "device_metadata"), "web")
	require.Equal(t, []string{"port-1=" + uuid + "@" + testHost}, w.neutron.state())
	requireLines(t, `
		InstanceActionEvent.event_start
		InstanceInfoCache.get_by_instance_uuid
		VirtualInterface.get_by_uuid
		VirtualInterface.destroy
		InstanceInfoCache.get_by_instance_uuid
		InstanceInfoCache.save
		Instance.save
		InstanceActionEvent.event_finish_with_failure
	`, methodsOf(w.nova.LogOf("InstanceActionEvent", "VirtualInterface", "InstanceInfoCache", "Instance.save", "InstanceDeviceMetadata")))

	_, err = w.operate("detach_interface", "", map[string]any{"port_id": "port-2"})
	require.True(t, exception.Is(err, "PortNotFound"), "%v", err)
	require.ErrorContains(t, err, "Port port-2 is not attached")
	w.unchanged()
}

func TestDetachFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(w *world)
		class   string
	}{
		"guest":  {func(w *world) { w.driver.Fail("DetachNIC", uuid, errBoom) }, "InterfaceDetachFailed"},
		"unplug": {func(w *world) { w.trail.fail("unplug", errBoom) }, "InterfaceDetachFailed"},
		"neutron": {func(w *world) {
			w.trail.fail("DELETE", errBoom)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			c.prepare(w)
			_, err := w.operate("detach_interface", "", map[string]any{"port_id": "port-1"})
			require.Error(t, err)
			class, _ := exception.ClassOf(err)
			require.Equal(t, c.class, class)
			w.unchanged()
			require.Equal(t, []string{"port-1=" + uuid + "@" + testHost}, w.neutron.state())
			_, err = w.operate("detach_interface", "", map[string]any{"port_id": "port-1"})
			require.NoError(t, err)
			require.Empty(t, w.interfaces())
			require.Empty(t, w.portIDs())
		})
	}
}

// TestCrashDuringAttach: whatever the crash hit, the port is gone after the next start.
func TestCrashDuringAttach(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} {
		for _, at := range []string{"POST", "VirtualInterface.create", "InstanceInfoCache.save", "plug", "AttachNIC"} {
			if own && at == "POST" {
				continue
			}
			t.Run(at, func(t *testing.T) {
				t.Parallel()
				w := built(t)
				w.nova.StartAction(uuid, "attach_interface", reqctx.From(user(t)))
				args := attachArgs(nil)
				if own {
					w.neutron.addPort("own")
					args = attachArgs(map[string]any{"network_id": nil, "port_id": "own"})
				}
				crash := func() { panic(errBoom) } // nothing after it happens, as after kill -9
				switch at {
				case "POST":
					rec, _, err := w.record(uuid)
					require.NoError(t, err)
					rec.PortChange = &portChange{Attach: true}
					require.NoError(t, w.saveRecord(rec))
					w.neutron.mu.Lock()
					w.neutron.store("port-9", map[string]any{"device_id": uuid, "binding:host_id": testHost})
					w.neutron.mu.Unlock()
				case "plug":
					w.plugger.crash = crash
				case "AttachNIC":
					w.driver.Crash = crash
				default:
					w.nova.On(at, crash)
				}
				if at != "POST" {
					require.Panics(t, func() { _, _ = w.operate("attach_interface", "", args) })
				}
				w.nova.On(at, nil)
				w.plugger.crash, w.driver.Crash = nil, nil
				w.nova.StartAction(uuid, "createImage", &reqctx.Request{RequestID: "req-later"}) // an attach has no task that would keep the user from it
				w.restarted()
				require.NoError(t, w.InitHost(t.Context()))
				w.drain()
				w.unchanged()
				if at != "POST" {
					require.Equal(t, []string{"req-1 Error"}, w.results("compute_attach_interface"))
				}
				want := []string{"port-1=" + uuid + "@" + testHost}
				if own {
					want = append([]string{"own=@"}, want...)
				}
				require.Equal(t, want, w.neutron.state())
			})
		}
	}
}

// TestCrashDuringDetach: a detachment that had begun is completed.
func TestCrashDuringDetach(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"unplug", "VirtualInterface.destroy", "InstanceInfoCache.save"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			_, err := w.operate("attach_interface", "", attachArgs(nil))
			require.NoError(t, err)
			crash := func() { panic(errBoom) }
			if at == "unplug" {
				w.plugger.crash = crash
			} else {
				w.nova.On(at, crash)
			}
			require.Panics(t, func() { _, _ = w.operate("detach_interface", "", map[string]any{"port_id": "port-2"}) })
			w.nova.On(at, nil)
			w.plugger.crash = nil
			w.restarted()
			require.NoError(t, w.InitHost(t.Context()))
			w.drain()
			w.unchanged()
			require.Equal(t, []string{"port-1=" + uuid + "@" + testHost}, w.neutron.state())
		})
	}
}

// TestMissingInterfaceIsGivenAgain: a guest that runs without a port of its record gets it when the agent starts.
func TestMissingInterfaceIsGivenAgain(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("attach_interface", "", attachArgs(nil))
	require.NoError(t, err)
	require.NoError(t, w.driver.DetachNIC(t.Context(), uuid, "port-2"))
	w.restarted()
	require.NoError(t, w.InitHost(t.Context()))
	w.drain()
	require.Equal(t, map[string]string{"port-1": "eth0", "port-2": "eth1"}, w.interfaces())
}

// TestRebootInsideAfterAnAttach: the monitor cannot reboot such a guest, so the agent does.
func TestRebootInsideAfterAnAttach(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("attach_interface", "", attachArgs(nil))
	require.NoError(t, err)
	w.driver.Reboot(uuid)
	require.NoError(t, w.guestChanged(adminContext(t.Context()), driver.Event{UUID: uuid, PowerState: driver.PowerStateShutdown}))
	i, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, i.State)
	require.Equal(t, map[string]string{"port-1": "eth0", "port-2": "eth1"}, w.interfaces())
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))

	w.driver.Reboot(uuid) // while the agent is away
	w.restarted()
	require.NoError(t, w.InitHost(t.Context()))
	w.drain()
	i, _ = w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, i.State)

	w.driver.Reboot(uuid)
	w.driver.Fail("Start", uuid, errBoom)
	require.NoError(t, w.guestChanged(adminContext(t.Context()), driver.Event{UUID: uuid, PowerState: driver.PowerStateShutdown}))
	require.Equal(t, "stopped/-/"+testHost, w.nova.States(uuid), "a server whose guest does not come back is stopped")
}

func TestVIFDeletedOfARunningServer(t *testing.T) {
	t.Parallel()
	w := built(t)
	_, err := w.operate("attach_interface", "", attachArgs(nil))
	require.NoError(t, err)
	w.neutron.remove("port-2")
	w.event(eventVIFDeleted, "port-2", "completed")
	w.drain()
	require.Equal(t, map[string]string{"port-1": "eth0"}, w.interfaces())
	require.Equal(t, []string{"port-1"}, w.portIDs())
	require.Equal(t, []string{"port-1"}, w.plugger.plugged())
}

// TestBuildWithTags: the metadata service can tell which device is which.
func TestBuildWithTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.build(map[string]any{"requested_networks": requested(map[string]any{"network_id": networkID}, map[string]any{"network_id": networkID, "tag": "db"})})
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	var stored struct {
		Name string `json:"nova_object.name"`
		Data struct {
			Devices []struct {
				Name string          `json:"nova_object.name"`
				Data novatest.Fields `json:"nova_object.data"`
			} `json:"devices"`
		} `json:"nova_object.data"`
	}
	require.NoError(t, json.Unmarshal([]byte(w.nova.Field(uuid, "device_metadata")), &stored))
	require.Equal(t, "InstanceDeviceMetadata", stored.Name)
	require.Len(t, stored.Data.Devices, 1)
	require.Equal(t, "NetworkInterfaceMetadata", stored.Data.Devices[0].Name)
	require.JSONEq(t, `["db"]`, string(stored.Data.Devices[0].Data["tags"]))
	require.JSONEq(t, `false`, string(stored.Data.Devices[0].Data["vf_trusted"]))
	require.NotContains(t, stored.Data.Devices[0].Data, "bus")
	second := w.instance("info_cache").NetworkInfo()[1]
	require.JSONEq(t, `"`+second.Address+`"`, string(stored.Data.Devices[0].Data["mac"]))
}
