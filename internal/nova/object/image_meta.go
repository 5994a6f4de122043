package object

// ImageMeta is an image inside a RequestSpec (nova/objects/image_meta.py). The image argument of a build is the plain Image.
type ImageMeta struct {
	Header
	ID              string          `nova:"id"`
	Name            string          `nova:"name"`
	Status          string          `nova:"status"`
	Visibility      string          `nova:"visibility"`
	Checksum        string          `nova:"checksum"`
	Owner           string          `nova:"owner"`
	Size            int64           `nova:"size"`
	VirtualSize     int64           `nova:"virtual_size"`
	ContainerFormat string          `nova:"container_format"`
	DiskFormat      string          `nova:"disk_format"`
	MinRAM          int             `nova:"min_ram"`
	MinDisk         int             `nova:"min_disk"`
	Tags            []string        `nova:"tags"`
	DirectURL       string          `nova:"direct_url"`
	Properties      *ImageMetaProps `nova:"properties"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ImageMeta) UnmarshalJSON(b []byte) error { return decode(b, o, "ImageMeta") }

// MarshalJSON implements json.Marshaler.
func (o ImageMeta) MarshalJSON() ([]byte, error) { return encode(&o) }

// ImageMetaProps are the image properties that Nova knows; absent means not set (nova/objects/image_meta.py:ImageMetaProps).
type ImageMetaProps struct {
	Header
	Architecture    string   `nova:"hw_architecture"`
	HVType          string   `nova:"img_hv_type"`
	VMMode          string   `nova:"hw_vm_mode"`
	OSType          string   `nova:"os_type"`
	OSDistro        string   `nova:"os_distro"`
	VIFModel        string   `nova:"hw_vif_model"`
	DiskBus         string   `nova:"hw_disk_bus"`
	ConfigDrive     string   `nova:"img_config_drive"`
	RootDeviceName  string   `nova:"img_root_device_name"`
	AdminUser       string   `nova:"os_admin_user"`
	SignatureVerify string   `nova:"img_signature"`
	TraitsRequired  []string `nova:"traits_required"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ImageMetaProps) UnmarshalJSON(b []byte) error { return decode(b, o, "ImageMetaProps") }

// MarshalJSON implements json.Marshaler.
func (o ImageMetaProps) MarshalJSON() ([]byte, error) { return encode(&o) }
