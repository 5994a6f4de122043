package object

// ConsoleAuthToken lets a console proxy reach an instance (nova/objects/console_auth_token.py).
type ConsoleAuthToken struct {
	Header
	ID                 int      `nova:"id"`
	ConsoleType        string   `nova:"console_type"`
	Host               string   `nova:"host"`
	Port               int      `nova:"port"`
	TLSPort            *int     `nova:"tls_port,null"` // from 1.3 (2025.1)
	InternalAccessPath string   `nova:"internal_access_path,null"`
	InstanceUUID       string   `nova:"instance_uuid"`
	AccessURLBase      string   `nova:"access_url_base,null"`
	Token              string   `nova:"token"`
	Expires            int      `nova:"expires"` // from 1.2 (2024.1)
	CreatedAt          DateTime `nova:"created_at,null"`
	UpdatedAt          DateTime `nova:"updated_at,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ConsoleAuthToken) UnmarshalJSON(b []byte) error { return decode(b, o, "ConsoleAuthToken") }

// MarshalJSON implements json.Marshaler.
func (o ConsoleAuthToken) MarshalJSON() ([]byte, error) { return encode(&o) }
