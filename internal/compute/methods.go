package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/rpc"
)

// Endpoints returns what nova-compute serves: the compute API at the release's version
// and the base API (nova/service.py:Service.start). Every method that a caller of
// any supported release can send is in the table: done, or refused at once with the
// class that the caller expects, so that no API call waits for a time-out.
func (m *Manager) Endpoints() []rpc.Endpoint {
	return []rpc.Endpoint{
		{Version: m.Release.ComputeRPC, Methods: m.methods()},
		{Namespace: "baseapi", Version: "1.1", Methods: baseMethods()},
		{Namespace: conductor.AgentNamespace, Version: conductor.AgentVersion, Methods: m.agentMethods()},
	}
}

func (m *Manager) methods() map[string]rpc.Handler {
	// completed is a method with all decorators (conductor.md 6.1) that the next start of the agent takes up by its task.
	completed := func(method string, body instanceFunc) rpc.Handler {
		return m.onInstance(operation{method: method, event: method, fault: true, revert: true, lock: true, ours: true, again: true}, body)
	}
	// query is a method that changes nothing and leaves no event.
	query := func(method string, body instanceFunc) rpc.Handler {
		return m.onInstance(operation{method: method}, body)
	}
	// question is a query whose failure is a fault of the instance.
	question := func(method string, body instanceFunc) rpc.Handler {
		return m.onInstance(operation{method: method, fault: true}, body)
	}
	methods := map[string]rpc.Handler{
		"build_and_run_instance": m.buildAndRunInstance,
		"terminate_instance":     m.terminateInstance,
		"start_instance":         completed("start_instance", m.startInstance),
		"stop_instance":          completed("stop_instance", m.stopInstance),
		"reboot_instance":        completed("reboot_instance", m.rebootInstance),
		"pause_instance":         completed("pause_instance", m.pauseInstance),
		"unpause_instance":       completed("unpause_instance", m.unpauseInstance),
		"soft_delete_instance":   m.endingSnapshots(completed("soft_delete_instance", m.softDeleteInstance)),
		"restore_instance":       completed("restore_instance", m.restoreInstance),
		"suspend_instance":       completed("suspend_instance", m.suspendInstance),
		"resume_instance":        completed("resume_instance", m.resumeInstance),
		"set_admin_password":     m.onInstance(operation{method: "set_admin_password", event: "set_admin_password", fault: true, revert: true, lock: true, ours: true}, m.setAdminPassword),

		"get_diagnostics":          question("get_diagnostics", m.legacyDiagnostics),
		"get_instance_diagnostics": question("get_instance_diagnostics", m.instanceDiagnostics),

		"get_serial_console":    question("get_serial_console", m.serialConsole),
		"validate_console_port": question("validate_console_port", m.validateConsolePort),

		"get_console_output":            query("get_console_output", m.consoleOutput),
		"inject_network_info":           query("inject_network_info", m.injectNetworkInfo),
		"attach_interface":              m.onInstance(operation{method: "attach_interface", event: "attach_interface", fault: true, lock: true, ours: true}, m.attachInterface),
		"detach_interface":              m.onInstance(operation{method: "detach_interface", event: "detach_interface", fault: true, lock: true, ours: true}, m.detachInterface),
		"add_fixed_ip_to_instance":      m.onInstance(operation{method: "add_fixed_ip_to_instance", fault: true, lock: true, ours: true}, m.addFixedIP),
		"remove_fixed_ip_from_instance": m.onInstance(operation{method: "remove_fixed_ip_from_instance", fault: true, lock: true, ours: true}, m.removeFixedIP),
		"external_instance_event":       m.externalInstanceEvent,
		"set_host_enabled":              m.setHostEnabled,
		"cache_images":                  m.cacheImages,
		"get_host_uptime":               m.hostUptime,
		// No root disk is shared with another host.
		"check_instance_shared_storage": func(context.Context, rpc.Args) (any, error) { return false, nil },
	}
	for method, step := range m.moveSteps() {
		methods[method] = m.moveMethod(method, step)
	}
	for method, d := range m.detachedMethods() {
		methods[method] = m.detached(d)
	}
	for method, refusal := range refusals {
		methods[method] = m.refuse(method, refusal)
	}
	return methods
}

// refusals are the methods of compute-rpc's table that are not served, with the class
// that keeps the server's state and gives the API's caller a proper answer.
var refusals = map[string]refusal{
	"trigger_crash_dump": {event: true, fault: true, notify: "trigger_crash_dump", err: unsupported("a crash dump")},
	"quiesce_instance": {err: instanceError(func(uuid string) error {
		return exception.New("InstanceQuiesceNotSupported", map[string]any{"instance_id": uuid})
	})},
	"unquiesce_instance": {err: unsupported("quiesce")},

	"prep_snapshot_based_resize_at_dest":            {event: true, fault: true, err: precheck("a cross-cell resize")},
	"prep_snapshot_based_resize_at_source":          {event: true, fault: true, revert: true, err: unsupported("a cross-cell resize")},
	"finish_snapshot_based_resize_at_dest":          {event: true, fault: true, revert: true, err: unsupported("a cross-cell resize")},
	"confirm_snapshot_based_resize_at_source":       {event: true, fault: true, err: unsupported("a cross-cell resize")},
	"revert_snapshot_based_resize_at_dest":          {event: true, fault: true, revert: true, err: unsupported("a cross-cell resize")},
	"finish_revert_snapshot_based_resize_at_source": {event: true, fault: true, revert: true, err: unsupported("a cross-cell resize")},

	// Any other class would put the server into ERROR (nova/conductor/manager.py:_live_migrate).
	"check_can_live_migrate_destination":     {event: true, fault: true, err: precheck("live migration")},
	"check_can_live_migrate_source":          {event: true, fault: true, err: precheck("live migration")},
	"live_migration":                         {event: true, fault: true, err: precheck("live migration")},
	"pre_live_migration":                     {event: true, fault: true, err: precheck("live migration")},
	"post_live_migration_at_destination":     {event: true, fault: true, err: precheck("live migration")},
	"rollback_live_migration_at_destination": {event: true, fault: true, err: precheck("live migration")},
	"live_migration_force_complete":          {event: true, fault: true, err: unsupported("live migration")},
	"live_migration_abort":                   {event: true, fault: true, err: unsupported("live migration")},
	"drop_move_claim_at_destination":         {err: unsupported("live migration")},

	"reserve_block_device_name": {fault: true, revert: true, err: func(args rpc.Args) error {
		var volume string
		_ = args.Decode("volume_id", &volume) // only for the text
		return exception.New("InvalidVolume", map[string]any{"reason": "volumes are not supported by the lxc driver (volume " + volume + ")"})
	}},
	"attach_volume":            {event: true, fault: true, err: unsupported("volume attach")},
	"detach_volume":            {event: true, fault: true, err: unsupported("volume detach")},
	"swap_volume":              {event: true, fault: true, err: unsupported("volume swap")},
	"extend_volume":            {event: true, fault: true, err: unsupported("volume extend")},
	"volume_snapshot_create":   {err: unsupported("an assisted volume snapshot")},
	"volume_snapshot_delete":   {err: unsupported("an assisted volume snapshot")},
	"remove_volume_connection": {err: unsupported("a volume connection")},
	"allow_share":              {event: true, fault: true, err: unsupported("a share")},
	"deny_share":               {event: true, fault: true, err: unsupported("a share")},

	"get_vnc_console":   {fault: true, err: noConsole},
	"get_spice_console": {fault: true, err: noConsole},
	"get_rdp_console":   {fault: true, err: noConsole},
	"get_mks_console":   {fault: true, err: noConsole},

	"host_power_action":     {err: unsupported("a host power action")},
	"host_maintenance_mode": {err: unsupported("host maintenance mode")},
}

// baseMethods is the base API that every Nova service serves (nova/baserpc.py:BaseRPCAPI).
func baseMethods() map[string]rpc.Handler {
	return map[string]rpc.Handler{
		"ping": func(_ context.Context, args rpc.Args) (any, error) {
			return map[string]any{"service": "compute", "arg": args["arg"]}, nil
		},
		"get_backdoor_port": func(context.Context, rpc.Args) (any, error) { return nil, nil },
	}
}
