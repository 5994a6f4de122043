package object

// InstanceFault is an error that a user sees in an instance (nova/objects/instance_fault.py).
type InstanceFault struct {
	Header
	ID           int    `nova:"id"`
	InstanceUUID string `nova:"instance_uuid"`
	Code         int    `nova:"code"`
	Message      string `nova:"message,null"` // at most 255 characters
	Details      string `nova:"details,null"`
	Host         string `nova:"host,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *InstanceFault) UnmarshalJSON(b []byte) error { return decode(b, o, "InstanceFault") }

// MarshalJSON implements json.Marshaler.
func (o InstanceFault) MarshalJSON() ([]byte, error) { return encode(&o) }
