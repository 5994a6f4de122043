package object

// KeyPair is a public key of a user (nova/objects/keypair.py).
type KeyPair struct {
	Header
	ID          int    `nova:"id"`
	Name        string `nova:"name"`
	UserID      string `nova:"user_id,null"`
	Fingerprint string `nova:"fingerprint,null"`
	PublicKey   string `nova:"public_key,null"`
	Type        string `nova:"type"` // ssh or x509
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *KeyPair) UnmarshalJSON(b []byte) error { return decode(b, o, "KeyPair") }

// MarshalJSON implements json.Marshaler.
func (o KeyPair) MarshalJSON() ([]byte, error) { return encode(&o) }

// KeyPairList is a list of key pairs.
type KeyPairList struct {
	Header
	Objects []*KeyPair `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *KeyPairList) UnmarshalJSON(b []byte) error { return decode(b, o, "KeyPairList") }

// MarshalJSON implements json.Marshaler.
func (o KeyPairList) MarshalJSON() ([]byte, error) { return encode(&o) }

// Tag is a tag of an instance (nova/objects/tag.py).
type Tag struct {
	Header
	ResourceID string `nova:"resource_id"`
	Tag        string `nova:"tag"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Tag) UnmarshalJSON(b []byte) error { return decode(b, o, "Tag") }

// MarshalJSON implements json.Marshaler.
func (o Tag) MarshalJSON() ([]byte, error) { return encode(&o) }

// TagList is a list of tags.
type TagList struct {
	Header
	Objects []*Tag `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *TagList) UnmarshalJSON(b []byte) error { return decode(b, o, "TagList") }

// MarshalJSON implements json.Marshaler.
func (o TagList) MarshalJSON() ([]byte, error) { return encode(&o) }

// TrustedCerts names the certificates that an image must be signed with (nova/objects/trusted_certs.py).
type TrustedCerts struct {
	Header
	IDs []string `nova:"ids"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *TrustedCerts) UnmarshalJSON(b []byte) error { return decode(b, o, "TrustedCerts") }

// MarshalJSON implements json.Marshaler.
func (o TrustedCerts) MarshalJSON() ([]byte, error) { return encode(&o) }
