package object

// DefaultRootDevice is what nova names a root disk when neither image nor driver
// has a wish (nova/block_device.py:DEFAULT_ROOT_DEV_NAME's prefix).
const DefaultRootDevice = "/dev/sda"

// BlockDeviceMapping is one disk of an instance (nova/objects/block_device.py).
type BlockDeviceMapping struct {
	Header
	ID                   int       `nova:"id"`
	UUID                 string    `nova:"uuid"`
	InstanceUUID         string    `nova:"instance_uuid"`
	Instance             *Instance `nova:"instance,null"`
	SourceType           string    `nova:"source_type,null"`      // blank, image, snapshot or volume
	DestinationType      string    `nova:"destination_type,null"` // local or volume
	GuestFormat          string    `nova:"guest_format,null"`
	DeviceType           string    `nova:"device_type,null"`
	DiskBus              string    `nova:"disk_bus,null"`
	BootIndex            *int      `nova:"boot_index,null"` // 0: the root disk; null or -1: not bootable
	DeviceName           string    `nova:"device_name,null"`
	DeleteOnTermination  bool      `nova:"delete_on_termination"`
	SnapshotID           string    `nova:"snapshot_id,null"`
	VolumeID             string    `nova:"volume_id,null"`
	VolumeSize           *int      `nova:"volume_size,null"` // GiB
	ImageID              string    `nova:"image_id,null"`
	NoDevice             bool      `nova:"no_device"`
	ConnectionInfo       string    `nova:"connection_info,null"` // JSON with secrets: never log it
	Tag                  string    `nova:"tag,null"`
	AttachmentID         string    `nova:"attachment_id,null"`
	VolumeType           string    `nova:"volume_type,null"`
	Encrypted            bool      `nova:"encrypted"`
	EncryptionSecretUUID string    `nova:"encryption_secret_uuid,null"`
	EncryptionFormat     string    `nova:"encryption_format,null"`
	EncryptionOptions    string    `nova:"encryption_options,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *BlockDeviceMapping) UnmarshalJSON(b []byte) error { return decode(b, o, "BlockDeviceMapping") }

// MarshalJSON implements json.Marshaler.
func (o BlockDeviceMapping) MarshalJSON() ([]byte, error) { return encode(&o) }

// BlockDeviceMappingList is a list of block device mappings.
type BlockDeviceMappingList struct {
	Header
	Objects []*BlockDeviceMapping `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *BlockDeviceMappingList) UnmarshalJSON(b []byte) error {
	return decode(b, o, "BlockDeviceMappingList")
}

// MarshalJSON implements json.Marshaler.
func (o BlockDeviceMappingList) MarshalJSON() ([]byte, error) { return encode(&o) }
