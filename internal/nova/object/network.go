package object

// VirtualInterface is the database's record of a port (nova/objects/virtual_interface.py).
type VirtualInterface struct {
	Header
	ID           int    `nova:"id"`
	Address      string `nova:"address,null"` // sent as "<mac>/<port id>", returned without the suffix
	NetworkID    int    `nova:"network_id"`
	InstanceUUID string `nova:"instance_uuid"`
	UUID         string `nova:"uuid"` // the port id
	Tag          string `nova:"tag,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *VirtualInterface) UnmarshalJSON(b []byte) error { return decode(b, o, "VirtualInterface") }

// MarshalJSON implements json.Marshaler.
func (o VirtualInterface) MarshalJSON() ([]byte, error) { return encode(&o) }

// VirtualInterfaceList is a list of virtual interfaces.
type VirtualInterfaceList struct {
	Header
	Objects []*VirtualInterface `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *VirtualInterfaceList) UnmarshalJSON(b []byte) error {
	return decode(b, o, "VirtualInterfaceList")
}

// MarshalJSON implements json.Marshaler.
func (o VirtualInterfaceList) MarshalJSON() ([]byte, error) { return encode(&o) }
