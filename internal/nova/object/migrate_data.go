package object

import (
	"errors"
	"strings"
)

// LiveMigrateData is the plan of a live migration, of any driver's class
// (nova/objects/migrate_data.py). The agent only refuses live migrations, so it has
// no typed fields.
type LiveMigrateData struct{ Header }

// UnmarshalJSON implements json.Unmarshaler.
func (o *LiveMigrateData) UnmarshalJSON(b []byte) error {
	h, err := parseHeader(b, "")
	if err != nil {
		return err
	}
	if !strings.HasSuffix(h.Class, "LiveMigrateData") {
		return &FormatError{Class: h.Class, Version: h.Version, Err: errors.New("found where a LiveMigrateData is expected")}
	}
	o.Header = h
	return nil
}

// MarshalJSON implements json.Marshaler.
func (o LiveMigrateData) MarshalJSON() ([]byte, error) {
	return encodeHeader(&o.Header, o.Data, o.Changes)
}
