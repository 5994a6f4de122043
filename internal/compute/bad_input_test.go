package compute

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/rpc"
)

// asked is how the API asks for an operation on an instance of this host: the task state that it sets, and the arguments.
type asked struct {
	task string
	args map[string]any
}

// operations are those that the API asks for, by method.
func operations(t testing.TB) map[string]asked {
	t.Helper()
	return map[string]asked{
		"start_instance": {"powering-on", nil}, "stop_instance": {"powering-off", nil},
		"reboot_instance": {"rebooting_hard", map[string]any{"reboot_type": "HARD"}},
		"pause_instance":  {"pausing", nil}, "unpause_instance": {"unpausing", nil},
		"suspend_instance": {"suspending", nil}, "resume_instance": {"resuming", nil},
		"soft_delete_instance": {"soft-deleting", nil}, "restore_instance": {"restoring", nil},
		"set_admin_password":            {"updating_password", map[string]any{"new_pass": "s3cret"}},
		"attach_interface":              {"", attachArgs(nil)},
		"detach_interface":              {"", map[string]any{"port_id": "port-1"}},
		"add_fixed_ip_to_instance":      {"", map[string]any{"network_id": networkID}},
		"remove_fixed_ip_from_instance": {"", map[string]any{"address": "10.77.0.100"}},
		"rebuild_instance":              {"rebuilding", rebuildArgs(t, imageID)},
		"rescue_instance":               {"rescuing", map[string]any{"rescue_password": nil, "rescue_image_ref": nil}},
		"unrescue_instance":             {"unrescuing", nil},
		"snapshot_instance":             {"image_snapshot_pending", map[string]any{"image_id": newImage}},
		"backup_instance":               {"image_backup", map[string]any{"image_id": newImage, "backup_type": "daily", "rotation": 1}},
		"shelve_instance":               {"shelving", map[string]any{"image_id": newImage}},
		"shelve_offload_instance":       {"shelving_offloading", map[string]any{"clean_shutdown": true}},
		"terminate_instance":            {"deleting", nil},
	}
}

// snapshots are the operations with an image that is deleted when they come to nothing.
var snapshots = []string{"snapshot_instance", "backup_instance", "shelve_instance"}

// host is what there is of servers on the host and in the services that it speaks to.
func (w *world) host() map[string]any {
	w.t.Helper()
	roots, err := w.roots.List(w.t.Context())
	require.NoError(w.t, err)
	guest, there := w.driver.Instance(uuid)
	return map[string]any{
		"roots": roots, "plugged": w.plugger.plugged(), "ports": w.neutron.state(), "held": w.placement.Consumers(), "usage": w.Tracker.Instances(),
		"guest": there, "power": guest.State, "init": guest.InitPID, "journal": w.entries(), "cancels": w.journal.Has(uuid),
	}
}

// TestForeignInstance: a message that went astray changes nothing of a server of another host, which runs there.
func TestForeignInstance(t *testing.T) {
	t.Parallel()
	w := built(t)
	require.NoError(t, w.removeFromHost(t.Context(), uuid))
	w.Tracker.Forget(t.Context(), uuid)
	w.nova.Update(uuid, map[string]any{"host": otherHost, "node": otherHost})
	w.glance.images.add(imageID, "active", nil)
	before, info, calls := w.host(), w.nova.NetworkInfo(uuid), len(w.driver.Calls())
	for method, ask := range operations(t) { // one after the other: nothing changes
		t.Run(method, func(t *testing.T) {
			w.nova.ClearLog()
			w.glance.images.add(newImage, "queued", nil)
			_, err := w.operate(method, ask.task, ask.args)
			if _, detached := w.detachedMethods()[method]; !detached {
				require.True(t, exception.Is(err, "InstanceNotFound"), "%v", err)
			}
			require.Equal(t, "active/-/"+otherHost, w.nova.States(uuid), "as before the API set a task")
			require.Empty(t, w.nova.Faults(), "nothing is wrong with the server")
			require.Equal(t, before, w.host())
			require.Equal(t, info, w.nova.NetworkInfo(uuid))
			require.Len(t, w.driver.Calls(), calls)
			require.Equal(t, slices.Contains(snapshots, method), !slices.Contains(w.glance.images.ids(), newImage))
		})
	}
}

// TestUnknownInstance: Nova has no row of it any more, and the host nothing.
func TestUnknownInstance(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(imageID, "active", nil)
	w.glance.images.add(newImage, "queued", nil)
	instance := w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")
	_, err := w.operate("terminate_instance", "deleting", nil)
	require.NoError(t, err)
	w.nova.RemoveInstance(uuid)
	before := w.host()
	classes := map[string]string{
		"set_admin_password": "InstancePasswordSetFailed", "add_fixed_ip_to_instance": "NetworkNotFoundForInstance",
		"remove_fixed_ip_from_instance": "FixedIpNotFoundForInstance", "terminate_instance": "",
	}
	for method, ask := range operations(t) { // one after the other: nothing changes
		t.Run(method, func(t *testing.T) {
			args := rpc.Args{"instance": instance}
			for name, value := range ask.args {
				args[name] = novatest.Raw(value)
			}
			_, err := w.call(user(t), method, args)
			want, special := classes[method]
			switch _, detached := w.detachedMethods()[method]; {
			case detached:
				require.NoError(t, err)
			case special:
				require.Equal(t, want, classOf(err), "%v", err)
			default:
				require.Contains(t, []string{"InstanceNotFound", "InstanceInfoCacheNotFound"}, classOf(err), "%v", err)
			}
			require.Equal(t, before, w.host())
		})
	}
}

// TestHalfBuiltInstance: its build was cut off before it had a guest. Whatever is asked of it, it can be deleted, and nothing is left.
func TestHalfBuiltInstance(t *testing.T) {
	t.Parallel()
	for method, ask := range operations(t) {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			require.NoError(t, w.driver.Destroy(t.Context(), uuid))
			w.nova.Update(uuid, map[string]any{"vm_state": "error"})
			w.glance.images.add(imageID, "active", nil)
			w.glance.images.add(newImage, "queued", nil)
			_, err := w.operate(method, ask.task, ask.args)
			if err != nil {
				require.Regexp(t, "InstanceNotFound|InstancePasswordSetFailed", classOf(err), "%v", err)
			}
			require.Equal(t, "-", w.nova.Field(uuid, "task_state"))
			require.Empty(t, w.entries())
			require.False(t, w.journal.Has(uuid))
			if w.nova.Field(uuid, "host") == "-" { // shelved: the API deletes it by itself, and its port
				require.Equal(t, []string{"port-1=" + uuid + "@"}, w.neutron.state())
				return
			}
			if method != "terminate_instance" {
				_, err = w.operate("terminate_instance", "deleting", nil)
				require.NoError(t, err)
			}
			require.Empty(t, w.neutron.state())
			w.nothingLeft()
		})
	}
}

func classOf(err error) string {
	class, _ := exception.ClassOf(err)
	return class
}

// TestHostileInstance: what is not an instance, or has no UUID, is nothing that a method does anything for.
func TestHostileInstance(t *testing.T) {
	t.Parallel()
	w := built(t)
	object := func(class string, data map[string]any) json.RawMessage {
		return novatest.Raw(map[string]any{"nova_object.name": class, "nova_object.namespace": "nova", "nova_object.version": "2.7", "nova_object.data": data})
	}
	before := w.host()
	methods := w.Endpoints()[0].Methods
	for _, method := range served {
		if slices.Contains([]string{"external_instance_event", "set_host_enabled", "get_host_uptime", "cache_images", "check_instance_shared_storage"}, method) {
			continue // on no instance, or on a list of them
		}
		for name, raw := range map[string]json.RawMessage{
			"none": nil, "null": json.RawMessage("null"), "number": json.RawMessage("7"), "text": json.RawMessage(`"x"`), "list": json.RawMessage("[]"), "dict": json.RawMessage("{}"),
			"another class": object("Flavor", map[string]any{"uuid": uuid}), "no uuid": object("Instance", map[string]any{"host": testHost}),
			"path": object("Instance", map[string]any{"uuid": "../../../etc/x"}), "suffix": object("Instance", map[string]any{"uuid": uuid + ".rescue"}),
			"null uuid": object("Instance", map[string]any{"uuid": nil}),
		} {
			args := rpc.Args{"migration": object("Migration", map[string]any{"uuid": migrationUUID})}
			maps.Copy(args, w.capturedBuild())
			delete(args, "instance")
			if raw != nil {
				args["instance"] = raw
			}
			_, err := methods[method](user(t), args)
			require.Error(t, err, "%s, %s", method, name)
		}
	}
	w.drain()
	require.Equal(t, before, w.host())
	require.Empty(t, w.nova.Log())
	require.Empty(t, w.trail.all())
	w.noJournal()
}

// TestWrongArguments: a message that cannot be read leaves the server in the state that it had before the API's.
func TestWrongArguments(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(imageID, "active", nil)
	before := w.host()
	for _, c := range []struct {
		method, argument string
		value            any
	}{
		{"stop_instance", "clean_shutdown", "perhaps"},
		{"reboot_instance", "reboot_type", 7},
		{"set_admin_password", "new_pass", 7},
		{"set_admin_password", "new_pass", nil},
		{"attach_interface", "network_id", []string{networkID}},
		{"attach_interface", "tag", 7},
		{"detach_interface", "port_id", map[string]any{}},
		{"detach_interface", "port_id", "no-such-port"},
		{"add_fixed_ip_to_instance", "network_id", 7},
		{"remove_fixed_ip_from_instance", "address", 7},
		{"rebuild_instance", "bdms", "x"},
		{"rebuild_instance", "preserve_ephemeral", "x"},
		{"rescue_instance", "rescue_image_ref", 7},
		{"rescue_instance", "rescue_image_ref", "no-such-image"},
		{"snapshot_instance", "image_id", 7},
		{"backup_instance", "rotation", "many"},
		{"shelve_instance", "image_id", []string{}},
		{"shelve_offload_instance", "clean_shutdown", "perhaps"},
	} {
		t.Run(c.method+" "+c.argument, func(t *testing.T) { // one after the other: nothing changes
			w.nova.ClearLog()
			w.glance.images.add(newImage, "queued", nil)
			ask := operations(t)[c.method]
			args := maps.Clone(ask.args)
			if args == nil {
				args = map[string]any{}
			}
			args[c.argument] = c.value
			_, err := w.operate(c.method, ask.task, args)
			if _, detached := w.detachedMethods()[c.method]; !detached {
				require.Error(t, err)
			}
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			require.Len(t, w.nova.Faults(), 1)
			require.NotContains(t, w.nova.Faults()[0], "s3cret")
			require.Equal(t, before, w.host())
		})
	}
}

// TestWrongState: an operation that does not fit what the guest does, of a server whose state in Nova is of another time.
func TestWrongState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method string
		guest  driver.PowerState
		class  string // "": it is done, since the guest is then as the API wants it
		vm     string
	}{
		{"start_instance", driver.PowerStateRunning, "", "active"},
		{"stop_instance", driver.PowerStatePaused, "", "stopped"},
		{"stop_instance", driver.PowerStateSuspended, "", "stopped"},
		{"pause_instance", driver.PowerStatePaused, "", "paused"},
		{"pause_instance", driver.PowerStateShutdown, "InstanceNotRunning", "active"},
		{"unpause_instance", driver.PowerStateRunning, "", "active"},
		{"unpause_instance", driver.PowerStateShutdown, "InstanceNotRunning", "active"},
		{"suspend_instance", driver.PowerStateShutdown, "InstanceNotRunning", "active"},
		{"resume_instance", driver.PowerStateRunning, "", "active"},
		{"set_admin_password", driver.PowerStateShutdown, "InstancePasswordSetFailed", "active"},
		{"set_admin_password", driver.PowerStateSuspended, "InstancePasswordSetFailed", "active"},
		{"restore_instance", driver.PowerStateRunning, "", "active"},
		{"reboot_instance", driver.PowerStatePaused, "", "active"},
	} {
		t.Run(c.method+" "+c.guest.String(), func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.accounts("root:x:0:0::/root:/bin/sh\n", "root:*:1::::::\n")
			w.driver.SetState(uuid, c.guest)
			ask := operations(t)[c.method]
			_, err := w.operate(c.method, ask.task, ask.args)
			require.Equal(t, c.class, classOf(err), "%v", err)
			require.Equal(t, c.vm+"/-/"+testHost, w.nova.States(uuid))
			require.Equal(t, c.class != "", len(w.nova.Faults()) == 1)
		})
	}
}
