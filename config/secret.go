package config

import "encoding/json"

// mask is what a secret shows instead of its value.
const mask = "***"

// Secret is a string that never shows itself: every formatting verb, JSON and
// text encoding print a mask. Reveal gives the value to the one caller that sends it.
type Secret string

// String implements fmt.Stringer with a mask; an empty secret prints as empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString implements fmt.GoStringer with a mask.
func (s Secret) GoString() string { return `config.Secret("` + s.String() + `")` }

// MarshalJSON implements json.Marshaler with a mask.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText implements encoding.TextMarshaler with a mask.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }
