package config

import (
	"context"
	"errors"
	"net"
	"os"
	"regexp"
	"strings"
)

// byRelease is the note of options whose default depends on the control plane's release.
const byRelease = "as the release's nova-compute: "

// defaults declares section [DEFAULT] (nova/conf/*.py, oslo_log/_options.py, oslo_service/_options.py).
func (r *registry) defaults() {
	s := r.section(defaultSection, "Who the agent is, how much of the host it gives away, and when it does what.")
	d := &r.config.Default
	identityOptions(s, d)
	loggingOptions(s, d)
	resourceOptions(s, d)
	intervalOptions(s, d)
	timeoutOptions(s, d)
	guestOptions(s, d)
}

func identityOptions(s *section, d *Defaults) {
	s.host(&d.Host, "host", "", "Name of this compute host in Nova, Placement and Neutron. It must equal the host of the"+
		" Neutron agent (or of ovn-controller) on this machine, and must never change while instances are here.").
		found("the system's host name", hostname)
	s.ip(&d.MyIP, "my_ip", "", "Address of this host on the management network.").
		found("the address used towards the default route", defaultAddress)
	s.ip(&d.MyBlockStorageIP, "my_block_storage_ip", "$my_ip", "Address of this host on the block storage network.")
	s.ip(&d.MySharedFSStorageIP, "my_shared_fs_storage_ip", "$my_ip", "Address of this host on the shared file system network.").from("2025.1")
	s.text(&d.ConsoleHost, "console_host", "", "Host name told to clients of consoles.").found("the system's host name", hostname)
	s.path(&d.StatePath, "state_path", "/var/lib/nova", "Directory for what must survive a restart.")
	s.path(&d.InstancesPath, "instances_path", "$state_path/instances", "Directory that nova-compute keeps instances in. The agent"+
		" reads it only when it takes a host over; its own instances are in [lxc] instances_dir.")
	s.path(&d.TempDir, "tempdir", "", "Directory for temporary files; unset is the system's.")
	s.text(&d.InstanceNameTemplate, "instance_name_template", "instance-%08x", "Template of an instance's name on the host, filled"+
		" with its number or with its fields, as in %(uuid)s.")
	s.text(&d.ComputeDriver, "compute_driver", "", "What runs the servers. Unset, lxc, or with a warning another driver of nova's: containers. "+
		strings.Join(fakeDrivers(), ", ")+": nothing is started, nor is root needed; the host reports the figures of nova's driver of"+
		" that name, to try a control plane with many hosts on one machine.")
	s.text(&d.DefaultAvailabilityZone, "default_availability_zone", "nova", "Availability zone of hosts that are in none.")
	s.text(&d.DefaultScheduleZone, "default_schedule_zone", "", "Availability zone of servers created without one.")
	s.text(&d.InternalServiceAvailabilityZone, "internal_service_availability_zone", "internal", "Availability zone shown for internal services.")
	s.boolean(&d.EnableNewServices, "enable_new_services", true, "Whether a new compute service starts enabled. The conductor's"+
		" configuration decides; the value here has no effect.")
	s.enum(&d.ServicegroupDriver, "servicegroup_driver", "db", "How the service reports that it is alive.", "db", "mc")
	s.seconds(&d.ReportInterval, "report_interval", 10, "Time between two reports that the service is alive.").atLeast(1)
	s.seconds(&d.ServiceDownTime, "service_down_time", 60, "Age of the last report at which a service counts as down.")
	s.boolean(&d.PeriodicEnable, "periodic_enable", true, "Whether periodic tasks run.")
	s.seconds(&d.PeriodicFuzzyDelay, "periodic_fuzzy_delay", 60, "Longest random delay before the first periodic task; 0 is none.").atLeast(0)
	s.seconds(&d.GracefulShutdownTimeout, "graceful_shutdown_timeout", 180, "Time for everything that a stop of the agent waits for;"+
		" 0 is no limit. nova-compute's default is 60 before 2026.1.").atLeast(0)
	s.seconds(&d.ManagerShutdownTimeout, "manager_shutdown_timeout", 160, "Part of graceful_shutdown_timeout in which operations in"+
		" progress may end; those that only wait are handed to the next start at once.").atLeast(0).from("2026.1")
	s.boolean(&d.ResumeGuestsStateOnHostBoot, "resume_guests_state_on_host_boot", false, "Whether instances that ran before a reboot of the"+
		" host are started again.")
	s.integer(&d.ExecutorThreadPoolSize, "executor_thread_pool_size", 64, "Requests that are worked on at the same time.").
		was("", "rpc_thread_pool_size").atLeast(1)
	s.boolean(&d.RPCPingEnabled, "rpc_ping_enabled", false, "Whether the RPC server answers oslo_rpc_server_ping.")
	s.text(&d.ControlExchange, "control_exchange", "nova", "AMQP exchange of Nova's topics; as on the controllers.")
	s.secretText(&d.TransportURL, "transport_url", "rabbit://", "Message bus: rabbit://user:password@host:port[,user:password@host:port]/virtual_host."+
		" In a deployment with cells, the bus of this host's cell.")
	s.seconds(&d.RPCResponseTimeout, "rpc_response_timeout", 60, "Time to wait for the answer to a call.").atLeast(1)
	s.seconds(&d.LongRPCTimeout, "long_rpc_timeout", 1800, "Time to wait for the answer to a call that takes long.").atLeast(1)
	s.text(&d.DefaultAccessIPNetworkName, "default_access_ip_network_name", "", "Network whose addresses become a server's access addresses.")
	s.boolean(&d.InstanceUsageAudit, "instance_usage_audit", false, "Whether compute.instance.exists notifications are sent every audit period.")
	s.pattern(&d.InstanceUsageAuditPeriod, "instance_usage_audit_period", "hour, day, month or year, and @offset", "month",
		"Audit period.", checkAuditPeriod)
}

func loggingOptions(s *section, d *Defaults) {
	s.boolean(&d.Debug, "debug", false, "Whether debug messages are logged. A reload applies it.")
	s.text(&d.LogFile, "log_file", "", "File to log to; a relative path is below log_dir.").was("", "logfile")
	s.path(&d.LogDir, "log_dir", "", "Directory of log_file, or of compute-agent.log if there is none; unset logs to the standard error output.").was("", "logdir")
	s.boolean(&d.UseJSON, "use_json", false, "Whether log lines are JSON objects.")
	s.boolean(&d.UseSyslog, "use_syslog", false, "Whether to log to syslog.")
	s.boolean(&d.UseJournal, "use_journal", false, "Whether to log to the systemd journal.")
	s.boolean(&d.UseStderr, "use_stderr", false, "Whether to log to the standard error output as well.")
	s.text(&d.SyslogLogFacility, "syslog_log_facility", "LOG_USER", "Facility of syslog messages.")
}

func resourceOptions(s *section, d *Defaults) {
	s.integer(&d.ReservedHostMemoryMB, "reserved_host_memory_mb", 512, "Memory, in MiB, that no instance gets.").atLeast(0)
	s.integer(&d.ReservedHostDiskMB, "reserved_host_disk_mb", 0, "Disk space, in MiB, that no instance gets.").atLeast(0)
	s.integer(&d.ReservedHostCPUs, "reserved_host_cpus", 0, "CPUs that no instance gets.").atLeast(0)
	s.dicts(&d.ReservedHugePages, "reserved_huge_pages", "Huge pages that no instance gets: node:<n>,size:<KiB>,count:<n>.")
	s.ratio(&d.CPUAllocationRatio, "cpu_allocation_ratio", "Virtual CPUs given away for each CPU of the host; 0.0 counts as unset.").
		none("the initial ratio at first, then what Placement has")
	s.ratio(&d.RAMAllocationRatio, "ram_allocation_ratio", "Memory given away for each MiB of the host; 0.0 counts as unset.").
		none("the initial ratio at first, then what Placement has")
	s.ratio(&d.DiskAllocationRatio, "disk_allocation_ratio", "Disk space given away for each GiB of the host; 0.0 counts as unset.").
		none("the initial ratio at first, then what Placement has")
	s.ratio(&d.InitialCPUAllocationRatio, "initial_cpu_allocation_ratio", "CPU ratio of a new host.").
		none(byRelease + "16.0 in Zed, then 4.0")
	s.ratio(&d.InitialRAMAllocationRatio, "initial_ram_allocation_ratio", "Memory ratio of a new host.").
		none(byRelease + "1.5 in Zed, then 1.0")
	s.float(&d.InitialDiskAllocationRatio, "initial_disk_allocation_ratio", 1, "Disk ratio of a new host.").atLeast(0)
	s.cpus(&d.VCPUPinSet, "vcpu_pin_set", "CPUs that instances may use. Old; [compute] cpu_shared_set and cpu_dedicated_set replace it.")
	s.list(&d.ComputeMonitors, "compute_monitors", "", "Monitors whose figures the host reports.")
	s.integer(&d.MaxConcurrentBuilds, "max_concurrent_builds", 10, "Instances that are built at the same time; 0 is no limit.").atLeast(0)
	s.integer(&d.MaxConcurrentSnapshots, "max_concurrent_snapshots", 5, "Snapshots that are taken at the same time; 0 is no limit.").atLeast(0)
	s.integer(&d.MaxConcurrentLiveMigrations, "max_concurrent_live_migrations", 1, "Live migrations away from this host at the same time; 0 is no limit.").atLeast(0)
}

func intervalOptions(s *section, d *Defaults) {
	s.seconds(&d.UpdateResourcesInterval, "update_resources_interval", 0, "Time between two reports of the host's resources; 0 is 60, less is off.")
	s.seconds(&d.SyncPowerStateInterval, "sync_power_state_interval", 600, "Time between two comparisons of the instances' power states with Nova's;"+
		" 0 is 60, less is off.")
	s.integer(&d.SyncPowerStatePoolSize, "sync_power_state_pool_size", 5, "Instances compared at the same time. nova-compute's default is 1000 before 2026.1.").atLeast(1)
	s.optionalSeconds(&d.HealInstanceInfoCacheInterval, "heal_instance_info_cache_interval", "Time between two refreshes of an instance's network"+
		" information; 0 and less are off.").none(byRelease + "60 before 2025.1, then -1")
	s.seconds(&d.ReclaimInstanceInterval, "reclaim_instance_interval", 0, "Time after which soft-deleted instances are removed; 0 turns soft delete"+
		" off. As on the controllers.")
	s.seconds(&d.VolumeUsagePollInterval, "volume_usage_poll_interval", 0, "Time between two collections of volume usage; 0 and less are off.")
	s.seconds(&d.ShelvedPollInterval, "shelved_poll_interval", 3600, "Time between two looks for shelved instances to offload; less than 0 is off.")
	s.seconds(&d.ShelvedOffloadTime, "shelved_offload_time", 0, "Time that a shelved instance stays on the host; -1 is for ever.")
	s.seconds(&d.InstanceDeleteInterval, "instance_delete_interval", 300, "Time between two removals of expired console tokens; less than 0 is off.")
	s.seconds(&d.SchedulerInstanceSyncInterval, "scheduler_instance_sync_interval", 120, "Time between two reports of this host's instances to the schedulers.")
	s.enum(&d.RunningDeletedInstanceAction, "running_deleted_instance_action", "reap", "What happens to an instance that is here and deleted in Nova.",
		"reap", "log", "shutdown", "noop")
	s.seconds(&d.RunningDeletedInstancePollInterval, "running_deleted_instance_poll_interval", 1800, "Time between two looks for such instances; less than 0 is off.")
	s.seconds(&d.RunningDeletedInstanceTimeout, "running_deleted_instance_timeout", 0, "Time since the delete before such an instance is acted on.")
}

func timeoutOptions(s *section, d *Defaults) {
	s.seconds(&d.InstanceBuildTimeout, "instance_build_timeout", 0, "Time after which an instance that is still being built goes to ERROR; 0 is off.").atLeast(0)
	s.seconds(&d.RebootTimeout, "reboot_timeout", 0, "Time after which a reboot in progress is done hard; 0 is off.").atLeast(0)
	s.seconds(&d.RescueTimeout, "rescue_timeout", 0, "Time after which a rescued instance is unrescued; 0 is off.").atLeast(0)
	s.seconds(&d.ResizeConfirmWindow, "resize_confirm_window", 0, "Time after which a resize confirms itself; 0 is off.").atLeast(0)
	s.seconds(&d.ShutdownTimeout, "shutdown_timeout", 60, "Time that a guest has to shut down by itself. The image property os_shutdown_timeout overrides it.").atLeast(0)
	s.seconds(&d.VIFPluggingTimeout, "vif_plugging_timeout", 300, "Time to wait for Neutron to wire a port; 0 does not wait.").atLeast(0)
	s.boolean(&d.VIFPluggingIsFatal, "vif_plugging_is_fatal", true, "Whether an instance whose port is not wired in time fails to start.")
	s.seconds(&d.ReimageTimeoutPerGB, "reimage_timeout_per_gb", 20, "Time for Cinder to write a new image to a volume, for each GB.").atLeast(1)
	s.integer(&d.BlockDeviceAllocateRetries, "block_device_allocate_retries", 60, "How often a new volume is looked at until it is ready.").atLeast(0)
	s.seconds(&d.BlockDeviceAllocateRetriesInterval, "block_device_allocate_retries_interval", 3, "Time between two such looks.").atLeast(0)
	s.integer(&d.NetworkAllocateRetries, "network_allocate_retries", 0, "How often the allocation of ports is tried again.").atLeast(0)
	s.integer(&d.LiveMigrationRetryCount, "live_migration_retry_count", 30, "How often the destination of a live migration looks for its volumes.").atLeast(0)
	s.integer(&d.MigrateMaxRetries, "migrate_max_retries", -1, "Destinations tried in a live migration; -1 is all.").atLeast(-1)
}

func guestOptions(s *section, d *Defaults) {
	s.boolean(&d.AllowResizeToSameHost, "allow_resize_to_same_host", false, "Whether a resize may end on the host where it starts; as on the controllers.")
	s.enum(&d.ConfigDriveFormat, "config_drive_format", "iso9660", "Format of a config drive for images that want a disk. Containers"+
		" otherwise get a directory.", "iso9660", "vfat")
	s.boolean(&d.ForceConfigDrive, "force_config_drive", false, "Whether every instance gets a config drive.")
	s.text(&d.DefaultEphemeralFormat, "default_ephemeral_format", "", "File system of ephemeral disks that ask for none.")
	s.boolean(&d.FlatInjected, "flat_injected", false, "Whether network settings are put into metadata for networks without DHCP.")
	s.integer(&d.MaxLocalBlockDevices, "max_local_block_devices", 3, "Local disks of an instance; 0 allows only volumes, less than 0 is no limit.")
	s.list(&d.NonInheritableImageProperties, "non_inheritable_image_properties", "cache_in_nova,bittorrent", "Image properties that snapshots do not take over.")
	s.integer(&d.PasswordLength, "password_length", 12, "Length of generated passwords.").atLeast(0)
	s.enum(&d.PreallocateImages, "preallocate_images", "none", "Whether root disks take up all their space at once.", "none", "space")
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return h
}

// defaultAddress is the source address of the default route. Connecting a
// datagram socket sends nothing (oslo_utils/netutils.py:get_my_ipv4).
func defaultAddress() string {
	const loopback = "127.0.0.1"
	var d net.Dialer
	conn, err := d.DialContext(context.Background(), "udp4", "192.0.2.1:80")
	if err != nil {
		return loopback
	}
	defer func() { _ = conn.Close() }()
	if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		return a.IP.String()
	}
	return loopback
}

var auditPeriod = regexp.MustCompile(`^(hour|month|day|year)(@([0-9]+))?$`)

func checkAuditPeriod(v string) error {
	if !auditPeriod.MatchString(v) {
		return errors.New("not an audit period")
	}
	return nil
}
