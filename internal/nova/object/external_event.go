package object

// InstanceExternalEvent is news from neutron or cinder about an instance (nova/objects/external_event.py).
type InstanceExternalEvent struct {
	Header
	InstanceUUID string            `nova:"instance_uuid"`
	Name         string            `nova:"name"`     // network-changed, network-vif-plugged, …
	Status       string            `nova:"status"`   // failed, completed or in-progress
	Tag          string            `nova:"tag,null"` // the port or volume
	EventData    map[string]string `nova:"data"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *InstanceExternalEvent) UnmarshalJSON(b []byte) error {
	return decode(b, o, "InstanceExternalEvent")
}

// MarshalJSON implements json.Marshaler.
func (o InstanceExternalEvent) MarshalJSON() ([]byte, error) { return encode(&o) }
