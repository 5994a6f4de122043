package config

// accepted lists options that a compute node's nova.conf may hold and that are
// deliberately without effect here: they are about virtual machines, about
// other services that share the file, or about Python. They are taken silently,
// whatever their value; options that are in no list are ignored as well.
// The documentation prints them, so that an operator finds what became of a setting.
func accepted() map[string][]string {
	return map[string][]string{
		defaultSection: {
			// Virtual machines and their disks.
			"arq_binding_timeout", "force_raw_images", "injected_network_template", "mkisofs_cmd", "pointer_model",
			"resize_fs_using_block_device", "timeout_nbd", "use_cow_images", "virt_mkfs",
			// Privileges of an unprivileged Python service.
			"rootwrap_config", "use_rootwrap_daemon",
			// Other services.
			"enabled_apis", "enabled_ssl_apis", "metadata_listen", "metadata_listen_port", "metadata_workers",
			"osapi_compute_listen", "osapi_compute_listen_port", "osapi_compute_unique_server_name_scope", "osapi_compute_workers",
			"cert", "daemon", "key", "record", "source_is_ipv6", "ssl_only", "web", "use_neutron",
			// Form of Python's log lines, and log files that a log rotation tool handles.
			"default_log_levels", "instance_format", "instance_uuid_format", "log_config_append", "log_date_format", "log_options",
			"log_rotate_interval", "log_rotate_interval_type", "log_rotation_type", "logging_context_format_string",
			"logging_debug_format_suffix", "logging_default_format_string", "logging_exception_prefix",
			"logging_user_identity_format", "max_logfile_count", "max_logfile_size_mb", "publish_errors",
			"rate_limit_burst", "rate_limit_except_level", "rate_limit_interval", "use_eventlog", "watch_log_file",
			// Python processes.
			"backdoor_port", "backdoor_socket", "conn_pool_min_size", "conn_pool_ttl", "pybasedir", "rpc_conn_pool_size",
			"run_external_periodic_tasks",
		},
		"api": {
			"auth_strategy", "compute_link_prefix", "enable_instance_password", "glance_link_prefix", "instance_list_cells_batch_fixed_size",
			"instance_list_cells_batch_strategy", "instance_list_per_project_cells", "list_records_by_skipping_down_cells",
			"local_metadata_per_cell", "max_limit", "metadata_cache_expiration", "neutron_default_project_id",
			"neutron_default_tenant_id", "use_forwarded_for", "use_neutron_default_nets",
		},
		"compute":                      {"packing_host_numa_cells_allocation_strategy", "vmdk_allowed_types"},
		"console":                      {"allowed_origins", "ssl_ciphers", "ssl_minimum_version"},
		"conductor":                    {"workers"},
		"devices":                      {"enabled_mdev_types"},
		"ephemeral_storage_encryption": {"cipher", "enabled", "key_size"},
		"glance":                       {"enable_rbd_download", "rbd_ceph_conf", "rbd_connect_timeout", "rbd_pool", "rbd_user"},
		"guestfs":                      {"debug"},
		"key_manager":                  {"backend", "fixed_key"},
		"libvirt": {
			"connection_uri", "cpu_mode", "cpu_model_extra_flags", "cpu_models", "disk_cachemodes", "disk_prefix", "file_backed_memory",
			"gid_maps", "hw_disk_discard", "hw_machine_type", "images_rbd_ceph_conf", "images_rbd_pool", "images_type",
			"images_volume_group", "inject_key", "inject_partition", "inject_password", "live_migration_scheme", "live_migration_uri",
			"mem_stats_period_seconds", "rbd_secret_uuid", "rx_queue_size", "snapshot_image_format", "sysinfo_serial",
			"swtpm_enabled", "tx_queue_size", "uid_maps", "use_virtio_for_bridges", "virt_type",
		},
		"mks":                 {"mksproxy_base_url"},
		"oslo_concurrency":    {"disable_process_locking", "lock_path"},
		rabbitSection:         {"heartbeat_in_pthread", "ssl_enforce_fips_mode"},
		"os_vif_linux_bridge": {"forward_bridge_interface", "iptables_bottom_regex", "iptables_drop_action", "iptables_top_regex", "use_ipv6"},
		"os_vif_ovs":          {"ovsdb_interface"},
		"pci":                 {"alias", "device_spec", "report_in_placement"},
		"rdp":                 {"enabled", "html5_proxy_base_url"},
		"scheduler":           {"max_attempts"},
		"serial_console":      {"serialproxy_host", "serialproxy_port"},
		"spice": {
			"agent_enabled", "html5proxy_base_url", "html5proxy_host", "html5proxy_port", "require_secure", "server_listen",
			"server_proxyclient_address", "spice_direct_proxy_base_url",
		},
		"upgrade_levels": {"cert"},
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
	}
}
