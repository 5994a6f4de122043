package object

// Service is a service record (nova/objects/service.py).
type Service struct {
	Header
	ID               int          `nova:"id"`
	UUID             string       `nova:"uuid"`
	Host             string       `nova:"host,null"`
	Binary           string       `nova:"binary,null"`
	Topic            string       `nova:"topic,null"`
	ReportCount      int          `nova:"report_count"`
	Disabled         bool         `nova:"disabled"`
	DisabledReason   string       `nova:"disabled_reason,null"`
	AvailabilityZone string       `nova:"availability_zone,null"`
	LastSeenUp       DateTime     `nova:"last_seen_up,null"`
	ForcedDown       bool         `nova:"forced_down"`
	ServiceVersion   int          `nova:"version"` // the SERVICE_VERSION, not the object's version
	ComputeNode      *ComputeNode `nova:"compute_node,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Service) UnmarshalJSON(b []byte) error { return decode(b, o, "Service") }

// MarshalJSON implements json.Marshaler.
func (o Service) MarshalJSON() ([]byte, error) { return encode(&o) }

// ServiceList is a list of services.
type ServiceList struct {
	Header
	Objects []*Service `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ServiceList) UnmarshalJSON(b []byte) error { return decode(b, o, "ServiceList") }

// MarshalJSON implements json.Marshaler.
func (o ServiceList) MarshalJSON() ([]byte, error) { return encode(&o) }
