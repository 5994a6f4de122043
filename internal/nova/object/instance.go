package object

import "encoding/json"

// Timestamps are the columns of every persistent object (nova/objects/base.py:NovaPersistentObject).
type Timestamps struct {
	CreatedAt DateTime `nova:"created_at,null"`
	UpdatedAt DateTime `nova:"updated_at,null"`
	DeletedAt DateTime `nova:"deleted_at,null"`
	Deleted   bool     `nova:"deleted"`
}

// States of Instance.vm_state (nova/compute/vm_states.py).
const (
	VMStateActive           = "active"
	VMStateBuilding         = "building"
	VMStatePaused           = "paused"
	VMStateSuspended        = "suspended"
	VMStateStopped          = "stopped"
	VMStateRescued          = "rescued"
	VMStateResized          = "resized"
	VMStateSoftDelete       = "soft-delete"
	VMStateDeleted          = "deleted"
	VMStateError            = "error"
	VMStateShelved          = "shelved"
	VMStateShelvedOffloaded = "shelved_offloaded"
)

// States of Instance.task_state (nova/compute/task_states.py); "" is null, no task.
const (
	TaskStateNone                       = ""
	TaskStateScheduling                 = "scheduling"
	TaskStateNetworking                 = "networking"
	TaskStateBlockDeviceMapping         = "block_device_mapping"
	TaskStateSpawning                   = "spawning"
	TaskStateImageSnapshotPending       = "image_snapshot_pending"
	TaskStateImageSnapshot              = "image_snapshot"
	TaskStateImagePendingUpload         = "image_pending_upload"
	TaskStateImageUploading             = "image_uploading"
	TaskStateImageBackup                = "image_backup"
	TaskStateUpdatingPassword           = "updating_password"
	TaskStateResizePrep                 = "resize_prep"
	TaskStateResizeMigrating            = "resize_migrating"
	TaskStateResizeMigrated             = "resize_migrated"
	TaskStateResizeFinish               = "resize_finish"
	TaskStateResizeReverting            = "resize_reverting"
	TaskStateResizeConfirming           = "resize_confirming"
	TaskStateRebooting                  = "rebooting"
	TaskStateRebootPending              = "reboot_pending"
	TaskStateRebootStarted              = "reboot_started"
	TaskStateRebootingHard              = "rebooting_hard"
	TaskStateRebootPendingHard          = "reboot_pending_hard"
	TaskStateRebootStartedHard          = "reboot_started_hard"
	TaskStatePausing                    = "pausing"
	TaskStateUnpausing                  = "unpausing"
	TaskStateSuspending                 = "suspending"
	TaskStateResuming                   = "resuming"
	TaskStatePoweringOff                = "powering-off"
	TaskStatePoweringOn                 = "powering-on"
	TaskStateRescuing                   = "rescuing"
	TaskStateUnrescuing                 = "unrescuing"
	TaskStateRebuilding                 = "rebuilding"
	TaskStateRebuildBlockDeviceMapping  = "rebuild_block_device_mapping"
	TaskStateRebuildSpawning            = "rebuild_spawning"
	TaskStateMigrating                  = "migrating"
	TaskStateDeleting                   = "deleting"
	TaskStateSoftDeleting               = "soft-deleting"
	TaskStateRestoring                  = "restoring"
	TaskStateShelving                   = "shelving"
	TaskStateShelvingImagePendingUpload = "shelving_image_pending_upload"
	TaskStateShelvingImageUploading     = "shelving_image_uploading"
	TaskStateShelvingOffloading         = "shelving_offloading"
	TaskStateUnshelving                 = "unshelving"
)

// Instance is a server (nova/objects/instance.py). The objects in RPC arguments are
// partial: Flavor, InfoCache, Metadata and SystemMetadata are nil when they were not
// loaded (see IsSet and the conductor client's LoadInstance).
type Instance struct {
	Header
	ID                     int      `nova:"id"`
	UUID                   string   `nova:"uuid"`
	UserID                 string   `nova:"user_id,null"`
	ProjectID              string   `nova:"project_id,null"`
	ImageRef               string   `nova:"image_ref,null"`
	KernelID               string   `nova:"kernel_id,null"`
	RamdiskID              string   `nova:"ramdisk_id,null"`
	Hostname               string   `nova:"hostname,null"`
	LaunchIndex            int      `nova:"launch_index"`
	KeyName                string   `nova:"key_name,null"`
	KeyData                string   `nova:"key_data,null"` // public key, ends with a newline
	PowerState             int      `nova:"power_state"`   // nova/compute/power_state.py; null reads as 0
	VMState                string   `nova:"vm_state,null"`
	TaskState              string   `nova:"task_state,null"`
	MemoryMB               int      `nova:"memory_mb"`
	VCPUs                  int      `nova:"vcpus"`
	RootGB                 int      `nova:"root_gb"`
	EphemeralGB            int      `nova:"ephemeral_gb"`
	EphemeralKeyUUID       string   `nova:"ephemeral_key_uuid,null"`
	Host                   string   `nova:"host,null"`
	Node                   string   `nova:"node,null"`
	ComputeID              *int     `nova:"compute_id,null"` // from 2.8 (2024.1)
	InstanceTypeID         int      `nova:"instance_type_id"`
	UserData               string   `nova:"user_data,null"` // base64
	ReservationID          string   `nova:"reservation_id,null"`
	LaunchedAt             DateTime `nova:"launched_at,null"`
	TerminatedAt           DateTime `nova:"terminated_at,null"`
	AvailabilityZone       string   `nova:"availability_zone,null"`
	DisplayName            string   `nova:"display_name,null"`
	DisplayDescription     string   `nova:"display_description,null"`
	LaunchedOn             string   `nova:"launched_on,null"`
	Locked                 bool     `nova:"locked"`
	LockedBy               string   `nova:"locked_by,null"`
	OSType                 string   `nova:"os_type,null"`
	Architecture           string   `nova:"architecture,null"`
	VMMode                 string   `nova:"vm_mode,null"`
	RootDeviceName         string   `nova:"root_device_name,null"`
	DefaultEphemeralDevice string   `nova:"default_ephemeral_device,null"`
	DefaultSwapDevice      string   `nova:"default_swap_device,null"`
	ConfigDrive            string   `nova:"config_drive,null"` // "" or "True"
	AccessIPv4             string   `nova:"access_ip_v4,null"`
	AccessIPv6             string   `nova:"access_ip_v6,null"`
	AutoDiskConfig         bool     `nova:"auto_disk_config"`
	Progress               int      `nova:"progress"`
	ShutdownTerminate      bool     `nova:"shutdown_terminate"`
	DisableTerminate       bool     `nova:"disable_terminate"`
	CellName               string   `nova:"cell_name,null"`
	Cleaned                bool     `nova:"cleaned"`
	Hidden                 bool     `nova:"hidden"`
	Timestamps

	Metadata         map[string]string  `nova:"metadata"`
	SystemMetadata   map[string]*string `nova:"system_metadata"` // saved as a whole: absent keys are deleted
	Flavor           *Flavor            `nova:"flavor,null"`
	OldFlavor        *Flavor            `nova:"old_flavor,null"`
	NewFlavor        *Flavor            `nova:"new_flavor,null"`
	InfoCache        *InstanceInfoCache `nova:"info_cache,null"`
	Keypairs         *KeyPairList       `nova:"keypairs,null"`
	Tags             *TagList           `nova:"tags,null"`
	Fault            *InstanceFault     `nova:"fault,null"`
	MigrationContext *MigrationContext  `nova:"migration_context,null"`
	TrustedCerts     *TrustedCerts      `nova:"trusted_certs,null"`
	Services         *ServiceList       `nova:"services,null"`

	// Kept as they come: the agent has no NUMA or PCI placement of its own.
	SecurityGroups *Generic `nova:"security_groups,null"` // always an empty SecurityGroupList with neutron
	PCIRequests    *Generic `nova:"pci_requests,null"`    // InstancePCIRequests
	PCIDevices     *Generic `nova:"pci_devices,null"`     // PciDeviceList
	NUMATopology   *Generic `nova:"numa_topology,null"`   // InstanceNUMATopology
	Resources      *Generic `nova:"resources,null"`       // ResourceList
	DeviceMetadata *Generic `nova:"device_metadata,null"` // InstanceDeviceMetadata
	VCPUModel      *Generic `nova:"vcpu_model,null"`      // VirtCPUModel
	EC2IDs         *Generic `nova:"ec2_ids,null"`         // EC2Ids, only in a build
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Instance) UnmarshalJSON(b []byte) error { return decode(b, o, "Instance") }

// MarshalJSON implements json.Marshaler.
func (o Instance) MarshalJSON() ([]byte, error) { return encode(&o) }

// Apply stores what a save returned (see the function Apply).
func (o *Instance) Apply(updates map[string]json.RawMessage) error { return Apply(o, updates) }

// System returns a system_metadata value; "" for null and for an absent key.
func (o *Instance) System(key string) string {
	if v := o.SystemMetadata[key]; v != nil {
		return *v
	}
	return ""
}

// NetworkInfo returns the cached VIF list; nil when info_cache is not loaded or empty.
func (o *Instance) NetworkInfo() NetworkInfo {
	if o.InfoCache == nil {
		return nil
	}
	return o.InfoCache.NetworkInfo
}

// InstanceList is a list of instances (nova/objects/instance.py:InstanceList).
type InstanceList struct {
	Header
	Objects []*Instance `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *InstanceList) UnmarshalJSON(b []byte) error { return decode(b, o, "InstanceList") }

// MarshalJSON implements json.Marshaler.
func (o InstanceList) MarshalJSON() ([]byte, error) { return encode(&o) }

// InstanceInfoCache holds the instance's VIFs (nova/objects/instance_info_cache.py).
type InstanceInfoCache struct {
	Header
	InstanceUUID string      `nova:"instance_uuid"`
	NetworkInfo  NetworkInfo `nova:"network_info,null,text"` // "[]" when empty, or null
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *InstanceInfoCache) UnmarshalJSON(b []byte) error { return decode(b, o, "InstanceInfoCache") }

// MarshalJSON implements json.Marshaler.
func (o InstanceInfoCache) MarshalJSON() ([]byte, error) { return encode(&o) }
