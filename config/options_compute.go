package config

// compute declares the sections about instances that are not services' credentials (nova/conf/*.py).
func (r *registry) compute() {
	c := r.config
	r.apiOptions(&c.API)
	r.computeOptions(&c.Compute)

	s := r.section("filter_scheduler", "What the schedulers want to know.")
	s.boolean(&c.FilterScheduler.TrackInstanceChanges, "track_instance_changes", true,
		"Whether the schedulers are told which instances are here; as on the controllers.")

	r.imageCacheOptions(&c.ImageCache)
	r.libvirtOptions(&c.Libvirt)

	s = r.section("upgrade_levels", "Caps on the versions that the agent sends: unset is the newest, else auto, a version or a release's name.")
	s.text(&c.UpgradeLevels.BaseAPI, "baseapi", "", "Cap for the base API.")
	s.text(&c.UpgradeLevels.Compute, "compute", "", "Cap for messages to other computes.")
	s.text(&c.UpgradeLevels.Conductor, "conductor", "", "Cap for messages to the conductor.")
	s.text(&c.UpgradeLevels.Scheduler, "scheduler", "", "Cap for messages to the schedulers.")

	r.workaroundOptions(&c.Workarounds)
}

func (r *registry) apiOptions(a *API) {
	s := r.section("api", "Metadata that goes into config drives.")
	s.text(&a.DHCPDomain, "dhcp_domain", "novalocal", "Domain that is put behind a server's name.").was(defaultSection, "")
	s.text(&a.ConfigDriveSkipVersions, "config_drive_skip_versions",
		"1.0 2007-01-19 2007-03-01 2007-08-29 2007-10-10 2007-12-15 2008-02-01 2008-09-01",
		"Versions of EC2 metadata that are left out, separated by blanks.").was(defaultSection, "")
	s.list(&a.VendordataProviders, "vendordata_providers", "StaticJSON", "Where vendor data is from.").
		oneOf("StaticJSON", "DynamicJSON").was(defaultSection, "")
	s.text(&a.VendordataJSONFilePath, "vendordata_jsonfile_path", "", "File with static vendor data.").was(defaultSection, "")
	s.list(&a.VendordataDynamicTargets, "vendordata_dynamic_targets", "", "Services that are asked for vendor data, each as name@URL.").was(defaultSection, "")
	s.text(&a.VendordataDynamicSSLCertFile, "vendordata_dynamic_ssl_certfile", "", "CA file for those services.").was(defaultSection, "")
	s.seconds(&a.VendordataDynamicConnectTimeout, "vendordata_dynamic_connect_timeout", 5, "Time to connect to them.").atLeast(3).was(defaultSection, "")
	s.seconds(&a.VendordataDynamicReadTimeout, "vendordata_dynamic_read_timeout", 5, "Time for their answer.").atLeast(0).was(defaultSection, "")
	s.boolean(&a.VendordataDynamicFailureFatal, "vendordata_dynamic_failure_fatal", false, "Whether an instance fails when they do.")
}

func (r *registry) computeOptions(c *Compute) {
	s := r.section("compute", "The compute host.")
	s.integer(&c.ConsecutiveBuildServiceDisableThreshold, "consecutive_build_service_disable_threshold", 10,
		"Failed builds in a row that the scheduler is told about; 0 does not count them.").atLeast(0)
	s.cpus(&c.CPUDedicatedSet, "cpu_dedicated_set", "CPUs for instances with pinned CPUs.")
	s.cpus(&c.CPUSharedSet, "cpu_shared_set", "CPUs for instances without pinned CPUs.")
	s.list(&c.ImageTypeExcludeList, "image_type_exclude_list", "", "Image formats that the host does not claim to support.")
	s.boolean(&c.LiveMigrationWaitForVIFPlug, "live_migration_wait_for_vif_plug", true, "Whether a live migration waits until the ports are wired at the destination.")
	s.integer(&c.MaxConcurrentDiskOps, "max_concurrent_disk_ops", 0, "Disk operations at the same time, such as unpacking an image; 0 is no limit.").atLeast(0)
	s.integer(&c.MaxDiskDevicesToAttach, "max_disk_devices_to_attach", -1, "Disks of an instance; -1 is no limit.").atLeast(-1)
	s.path(&c.ProviderConfigLocation, "provider_config_location", "/etc/nova/provider_config/", "Directory of YAML files with extra inventory and traits.")
	s.seconds(&c.ResourceProviderAssociationRefresh, "resource_provider_association_refresh", 300,
		"Age at which what is known from Placement is read again; 0 is never.").atLeast(0)
	s.integer(&c.SharingProvidersMaxUUIDsPerRequest, "sharing_providers_max_uuids_per_request", 200, "Aggregates named in one request to Placement.").atLeast(1).from("2024.1")
	s.seconds(&c.ShutdownRetryInterval, "shutdown_retry_interval", 10, "Time between two shutdown requests to a guest.").atLeast(1)
}

func (r *registry) imageCacheOptions(c *ImageCache) {
	s := r.section("image_cache", "What happens to images that no instance uses.")
	s.seconds(&c.ManagerInterval, "manager_interval", 2400, "Time between two looks at the store; 0 is 60, -1 is off.").atLeast(-1).was(defaultSection, "image_cache_manager_interval")
	s.text(&c.SubdirectoryName, "subdirectory_name", "_base", "Directory of nova-compute's image cache below instances_path;"+
		" not used: the store is [lxc] image_dir, and what nova-compute has left there stays.").was(defaultSection, "image_cache_subdirectory_name")
	s.boolean(&c.RemoveUnusedBaseImages, "remove_unused_base_images", true, "Whether unused images are removed for their age.").was(defaultSection, "")
	s.seconds(&c.RemoveUnusedOriginalMinimumAgeSeconds, "remove_unused_original_minimum_age_seconds", 86400, "Time since its last use that an unused image is kept.").was(defaultSection, "")
	s.seconds(&c.RemoveUnusedResizedMinimumAgeSeconds, "remove_unused_resized_minimum_age_seconds", 3600, "Time that an unused derived image is kept; there are none here.").was("libvirt", "")
	s.integer(&c.PrecacheConcurrency, "precache_concurrency", 1, "Hosts on which the conductor has images cached at the same time;"+
		" here, the images that are.").atLeast(1)
}

func (r *registry) libvirtOptions(c *Libvirt) {
	s := r.section("libvirt", "Options of this section that are not about libvirt: volumes, rescue, snapshots, injection.")
	s.boolean(&c.InjectKey, "inject_key", false, "Whether a server's public key is written into new root disks, as one of root's. Needs inject_partition.")
	s.integer(&c.InjectPartition, "inject_partition", NoInjection, "Whether new root disks of servers without a config drive are written into: -2 is no, any other value is yes, since"+
		" a container's root has no partitions. Personality files and metadata (/meta.js) always are then.").atLeast(NoInjection)
	s.boolean(&c.InjectPassword, "inject_password", false, "Whether the admin password is written into new root disks, as that of root or of the image's os_admin_user. Needs inject_partition.")
	s.text(&c.ISCSIIface, "iscsi_iface", "", "iSCSI interface to use.").was("", "iscsi_transport")
	s.text(&c.NFSMountOptions, "nfs_mount_options", "", "Options for mounting NFS shares with volumes.")
	s.path(&c.NFSMountPointBase, "nfs_mount_point_base", "$state_path/mnt", "Directory where they are mounted.")
	s.integer(&c.NumVolumeScanTries, "num_volume_scan_tries", 5, "How often a volume's device is looked for.").was("", "num_iscsi_scan_tries").atLeast(1)
	s.text(&c.RBDUser, "rbd_user", "", "Ceph user for RBD volumes.")
	s.text(&c.RescueImageID, "rescue_image_id", "", "Image for rescue when the request names none.")
	s.path(&c.SnapshotsDirectory, "snapshots_directory", "$instances_path/snapshots", "Directory where snapshots are made.")
	s.boolean(&c.VolumeUseMultipath, "volume_use_multipath", false, "Whether volumes are connected over several paths.").was("", "iscsi_use_multipath")
	s.seconds(&c.WaitSoftRebootSeconds, "wait_soft_reboot_seconds", 120, "Time for a soft reboot before it is done hard.")
}

func (r *registry) workaroundOptions(w *Workarounds) {
	s := r.section("workarounds", "Ways around known problems.")
	s.boolean(&w.DisableComputeServiceCheckForFFU, "disable_compute_service_check_for_ffu", false, "Whether too old computes in the deployment only give a warning.")
	s.boolean(&w.DisableDeepImageInspection, "disable_deep_image_inspection", false, "Whether the format of an image is believed. The agent looks at the"+
		" header all the same and only skips the check that it equals what Glance says.")
	s.boolean(&w.DisableFallbackPCPUQuery, "disable_fallback_pcpu_query", false, "Whether the scheduler looks only for dedicated CPUs when asked for them.")
	s.boolean(&w.DisableGroupPolicyCheckUpcall, "disable_group_policy_check_upcall", false, "Whether the late check of server group policies is left out. Needed"+
		" where the cell's conductor cannot reach the API database.")
	s.boolean(&w.HandleVirtLifecycleEvents, "handle_virt_lifecycle_events", true, "Whether stops and starts of containers outside Nova are told to Nova at once.")
	s.boolean(&w.ReserveDiskResourceForImageCache, "reserve_disk_resource_for_image_cache", false, "Whether the image store's size is taken off the disk that instances get.")
	s.list(&w.WaitForVIFPluggedEventDuringHardReboot, "wait_for_vif_plugged_event_during_hard_reboot", "",
		"VNIC types for which a hard reboot waits until the port is wired.").oneOf(vnicTypes()...)
}

// vnicTypes lists Neutron's VNIC types (nova/network/model.py).
func vnicTypes() []string {
	return []string{
		"normal", "direct", "macvtap", "baremetal", "direct-physical", "virtio-forwarder", "smart-nic", "vdpa",
		"accelerator-direct", "accelerator-direct-physical", "remote-managed",
	}
}
