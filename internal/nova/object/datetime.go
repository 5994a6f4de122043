package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// DateTime is a moment of Nova's DateTime fields; the zero value is null. On the wire
// it has seconds and a Z (oslo.versionedobjects _utils.py:isotime).
type DateTime struct{ time.Time }

const wireLayout = "2006-01-02T15:04:05Z"

// Now is the present moment, in UTC.
func Now() DateTime { return At(time.Now()) }

// At converts a time: UTC, whole seconds, no monotonic reading.
func At(t time.Time) DateTime {
	return DateTime{t.UTC().Truncate(time.Second)}
}

// MarshalJSON implements json.Marshaler.
func (d DateTime) MarshalJSON() ([]byte, error) {
	if d.IsZero() {
		return []byte("null"), nil
	}
	return []byte(`"` + d.UTC().Format(wireLayout) + `"`), nil
}

// UnmarshalJSON implements json.Unmarshaler. It accepts ISO 8601 with or without
// fraction and zone; no zone is UTC.
func (d *DateTime) UnmarshalJSON(b []byte) error {
	if string(bytes.TrimSpace(b)) == "null" {
		*d = DateTime{}
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return shorten(err)
	}
	t, err := parseTime(s)
	if err != nil {
		return err
	}
	*d = DateTime{t}
	return nil
}

var timeLayouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00",
}

func parseTime(s string) (time.Time, error) {
	if len(s) > 64 {
		return time.Time{}, errors.New("time is longer than 64 characters")
	}
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time of the form YYYY-MM-DDTHH:MM:SSZ", s)
}
