package compute

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/rpc"
)

// served are the methods that a container host carries out.
var served = []string{
	"build_and_run_instance", "terminate_instance", "start_instance", "stop_instance", "reboot_instance", "pause_instance", "unpause_instance",
	"soft_delete_instance", "restore_instance", "get_console_output", "inject_network_info", "external_instance_event", "set_host_enabled",
	"get_host_uptime", "cache_images",
	"suspend_instance", "resume_instance", "set_admin_password", "get_diagnostics", "get_instance_diagnostics",
	"attach_interface", "detach_interface", "add_fixed_ip_to_instance", "remove_fixed_ip_from_instance",
	"get_serial_console", "validate_console_port",
	"rebuild_instance", "rescue_instance", "unrescue_instance", "snapshot_instance", "backup_instance",
	"shelve_instance", "shelve_offload_instance", "unshelve_instance",
	"prep_resize", "resize_instance", "finish_resize", "confirm_resize", "revert_resize", "finish_revert_resize", "check_instance_shared_storage",
}

// refusedWith are the other methods of the compute API from 6.0 to 6.5
// (nova/compute/rpcapi.py:ComputeAPI), with the class that callers can deal with.
var refusedWith = map[string]string{
	"trigger_crash_dump": "NotImplementedError",
	"quiesce_instance":   "InstanceQuiesceNotSupported", "unquiesce_instance": "NotImplementedError",

	"prep_snapshot_based_resize_at_dest":      "MigrationPreCheckError",
	"prep_snapshot_based_resize_at_source":    "NotImplementedError",
	"finish_snapshot_based_resize_at_dest":    "NotImplementedError",
	"confirm_snapshot_based_resize_at_source": "NotImplementedError", "revert_snapshot_based_resize_at_dest": "NotImplementedError",
	"finish_revert_snapshot_based_resize_at_source": "NotImplementedError",
	"check_can_live_migrate_destination":            "MigrationPreCheckError", "check_can_live_migrate_source": "MigrationPreCheckError",
	"live_migration": "MigrationPreCheckError", "pre_live_migration": "MigrationPreCheckError",
	"post_live_migration_at_destination": "MigrationPreCheckError", "rollback_live_migration_at_destination": "MigrationPreCheckError",
	"drop_move_claim_at_destination": "NotImplementedError", "live_migration_force_complete": "NotImplementedError",
	"live_migration_abort": "NotImplementedError", "remove_volume_connection": "NotImplementedError",

	"reserve_block_device_name": "InvalidVolume", "attach_volume": "NotImplementedError", "detach_volume": "NotImplementedError",
	"swap_volume": "NotImplementedError", "volume_snapshot_create": "NotImplementedError", "volume_snapshot_delete": "NotImplementedError",
	"allow_share": "NotImplementedError", "deny_share": "NotImplementedError",

	"get_vnc_console": "ConsoleTypeUnavailable", "get_spice_console": "ConsoleTypeUnavailable",
	"get_mks_console": "ConsoleTypeUnavailable", "get_rdp_console": "ConsoleTypeUnavailable",
	"host_power_action": "NotImplementedError", "host_maintenance_mode": "NotImplementedError",
}

// notInTheTable are methods that no caller sends, yet harmless to answer.
var notInTheTable = []string{"extend_volume"}

func TestEveryMethodIsServedOrRefused(t *testing.T) {
	t.Parallel()
	methods := New(Options{}, Deps{}).Endpoints()[0].Methods
	for _, name := range served {
		require.Contains(t, methods, name)
		require.NotContains(t, refusals, name)
	}
	for name := range refusedWith {
		require.Contains(t, methods, name)
	}
	for name := range methods {
		known := slices.Contains(served, name) || slices.Contains(notInTheTable, name)
		if _, refused := refusedWith[name]; !refused && !known {
			t.Errorf("%s is in no table of this test", name)
		}
	}
	for _, r := range release.All() {
		endpoints := New(Options{}, Deps{Release: r}).Endpoints()
		require.Equal(t, r.ComputeRPC, endpoints[0].Version)
		require.Empty(t, endpoints[0].Namespace)
		require.Equal(t, "baseapi", endpoints[1].Namespace)
	}
}

// TestRefusedMethods: a refusal comes as the class that the API's caller can deal with,
// opens and closes the action event, and leaves the server in its state without a task.
func TestRefusedMethods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.buildArgs(nil) // stores the row
	for _, method := range slices.Sorted(maps.Keys(refusedWith)) {
		t.Run(method, func(t *testing.T) { // one after the other: they share the server
			w.nova.ClearLog()
			w.nova.Update(uuid, map[string]any{"vm_state": "active", "task_state": "a_task", "host": testHost})
			args := rpc.Args{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "flavor"), "console_type": novatest.Raw("novnc"), "volume_id": novatest.Raw("vol")}
			_, err := w.call(user(t), method, args)
			class, _ := exception.ClassOf(err)
			require.Equal(t, refusedWith[method], class, "%v", err)

			r := refusals[method]
			events := w.nova.LogOf("InstanceActionEvent")
			if r.event {
				require.Len(t, events, 2)
				require.Equal(t, "InstanceActionEvent.event_start compute_"+method, events[0])
				require.Contains(t, events[1], "compute_"+method+" failed: ")
			} else {
				require.Empty(t, events)
			}
			require.Equal(t, r.fault, len(w.nova.Faults()) == 1)
			task := "a_task"
			if r.revert {
				task = "-"
			}
			require.Equal(t, "active/"+task+"/"+testHost, w.nova.States(uuid))
			require.Equal(t, []string{uuid}, w.placement.Consumers())
		})
	}
}

// TestRefusedWithoutInstance: methods about the host have no instance to settle.
func TestRefusedWithoutInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, method := range []string{"host_power_action", "host_maintenance_mode"} {
		_, err := w.call(user(t), method, rpc.Args{})
		require.True(t, exception.Is(err, "NotImplementedError"), method)
	}
	for _, method := range []string{"quiesce_instance", "stop_instance", "get_console_output"} {
		_, err := w.call(user(t), method, rpc.Args{})
		require.Error(t, err, method)
	}
	require.Empty(t, w.nova.Log())
}

func TestBaseAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	base := w.Endpoints()[1]
	got, err := base.Methods["ping"](t.Context(), rpc.Args{"arg": novatest.Raw("1.21 GigaWatts")})
	require.NoError(t, err)
	require.Equal(t, map[string]any{"service": "compute", "arg": novatest.Raw("1.21 GigaWatts")}, got)
	got, err = base.Methods["get_backdoor_port"](t.Context(), nil)
	require.NoError(t, err)
	require.Nil(t, got)
}

func TestHostMethods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, enabled := range []bool{false, true} {
		want := map[bool]string{false: "disabled", true: "enabled"}[enabled]
		got, err := w.call(t.Context(), "set_host_enabled", rpc.Args{"enabled": novatest.Raw(enabled)})
		require.NoError(t, err)
		require.Equal(t, want, got)
		p, _ := w.placement.Provider(w.Tracker.ProviderUUID())
		require.Equal(t, !enabled, slices.Contains(p.Traits, "COMPUTE_STATUS_DISABLED"))
	}
	w.placement.SetDown(true)
	_, err := w.call(t.Context(), "set_host_enabled", rpc.Args{"enabled": novatest.Raw(false)})
	require.Error(t, err)
	_, err = w.call(t.Context(), "set_host_enabled", rpc.Args{})
	require.Error(t, err)
	uptime, err := w.call(t.Context(), "get_host_uptime", rpc.Args{})
	require.NoError(t, err)
	require.Contains(t, uptime, "load average")
}
