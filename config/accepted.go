package config

// accepted lists what a compute node's nova.conf may hold and what is
// deliberately without effect here: options about virtual machines, about other
// services that share the file, or about Python. They are taken silently,
// whatever their value. A section without a list is accepted as a whole, apart
// from the options of the registry. Nothing depends on this list, since options
// that are in neither are ignored as well; the documentation prints it, so that
// an operator finds what became of a setting.
func accepted() map[string][]string {
	client := []string{"collect_timing", "max_version", "min_version", "split_loggers", "version"}
	return map[string][]string{
		defaultSection: {
			// Virtual machines and their disks.
			"arq_binding_timeout", "force_raw_images", "injected_network_template", "mkisofs_cmd", "pointer_model",
			"resize_fs_using_block_device", "timeout_nbd", "use_cow_images", "virt_mkfs",
			// Privileges of an unprivileged Python service.
			"rootwrap_config", "use_rootwrap_daemon",
			// Files of deleted instances are removed for as long as there are any.
			"maximum_instance_delete_attempts",
			// Other services.
			"cert", "daemon", "enabled_apis", "enabled_ssl_apis", "key", "metadata_listen", "metadata_listen_port", "metadata_workers",
			"osapi_compute_listen", "osapi_compute_listen_port", "osapi_compute_unique_server_name_scope", "osapi_compute_workers",
			"record", "source_is_ipv6", "ssl_only", "use_neutron", "web",
			// Form of Python's log lines, and log files that a rotation tool handles.
			"default_log_levels", "instance_format", "instance_uuid_format", "log_config_append", "log_date_format", "log_options",
			"log_rotate_interval", "log_rotate_interval_type", "log_rotation_type", "logging_context_format_string",
			"logging_debug_format_suffix", "logging_default_format_string", "logging_exception_prefix",
			"logging_user_identity_format", "max_logfile_count", "max_logfile_size_mb", "publish_errors",
			"rate_limit_burst", "rate_limit_except_level", "rate_limit_interval", "use_eventlog", "watch_log_file",
			// Python processes.
			"backdoor_port", "backdoor_socket", "config_source", "conn_pool_min_size", "conn_pool_ttl", "pybasedir",
			"rpc_conn_pool_size", "run_external_periodic_tasks",
		},
		"api": {
			"auth_strategy", "compute_link_prefix", "enable_instance_password", "glance_link_prefix", "instance_list_cells_batch_fixed_size",
			"instance_list_cells_batch_strategy", "instance_list_per_project_cells", "list_records_by_skipping_down_cells",
			"local_metadata_per_cell", "max_limit", "metadata_cache_expiration", "neutron_default_project_id",
			"neutron_default_tenant_id", "use_forwarded_for", "use_neutron_default_nets",
		},
		"cinder":              client,
		"compute":             {"packing_host_numa_cells_allocation_strategy", "vmdk_allowed_types"},
		"glance":              append([]string{"enable_rbd_download", "rbd_ceph_conf", "rbd_connect_timeout", "rbd_pool", "rbd_user"}, client...),
		"keystone":            client,
		"mks":                 {"mksproxy_base_url"},
		"neutron":             client,
		"os_vif_linux_bridge": {"forward_bridge_interface", "iptables_bottom_regex", "iptables_drop_action", "iptables_top_regex", "use_ipv6"},
		"os_vif_ovs":          {"ovsdb_interface"},
		"placement":           client,
		rabbitSection:         {"heartbeat_in_pthread", "ssl_enforce_fips_mode"},
		"serial_console":      {"serialproxy_host", "serialproxy_port"},
		"service_user":        client,
		"spice": {
			"agent_enabled", "html5proxy_base_url", "html5proxy_host", "html5proxy_port", "require_secure", "server_listen",
			"server_proxyclient_address", "spice_direct_proxy_base_url",
		},
		"upgrade_levels":          {"cert"},
		"vendordata_dynamic_auth": client,
		"vnc": {
			"auth_schemes", "novncproxy_base_url", "novncproxy_host", "novncproxy_port", "server_listen", "server_proxyclient_address",
			"vencrypt_ca_certs", "vencrypt_client_cert", "vencrypt_client_key",
		},
		"workarounds": {
			"disable_libvirt_livesnapshot", "disable_rootwrap", "enable_numa_live_migration", "enable_qemu_monitor_announce_self",
			"ensure_libvirt_rbd_instance_dir_cleanup", "libvirt_disable_apic", "never_download_image_if_on_rbd",
			"qemu_monitor_announce_self_count", "qemu_monitor_announce_self_interval", "skip_cpu_compare_at_startup",
			"skip_cpu_compare_on_dest", "skip_hypervisor_version_check_on_lm", "skip_reserve_in_use_ironic_nodes",
			"unified_limits_count_pcpu_as_vcpu",
		},

		// Hypervisors, devices of virtual machines.
		"devices": nil, "ephemeral_storage_encryption": nil, "guestfs": nil, "hyperv": nil, "ironic": nil, "libvirt": nil,
		"pci": nil, "rdp": nil, "vmware": nil, "zvm": nil,
		// Privileged helpers and locks of Python services.
		"oslo_concurrency": nil, "privsep": nil, "vif_plug_linux_bridge_privileged": nil, "vif_plug_ovs_privileged": nil,
		// Other services and their clients. Credentials in [keystone_authtoken] are read where auth_section names it.
		"api_database": nil, "barbican": nil, "barbican_service_user": nil, "cache": nil, "conductor": nil, "console": nil, "cors": nil,
		"cyborg": nil, "database": nil, "filter_scheduler": nil, "healthcheck": nil, "key_manager": nil, "keystone_authtoken": nil,
		"manila": nil, "metrics": nil, "oslo_limit": nil, "oslo_messaging_amqp": nil, "oslo_messaging_kafka": nil,
		"oslo_middleware": nil, "oslo_policy": nil, "oslo_reports": nil, "profiler": nil, "quota": nil, "scheduler": nil,
		"vault": nil, "wsgi": nil,
	}
}
