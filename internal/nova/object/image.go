package object

import (
	"encoding/json"
	"fmt"
	"maps"
)

// Image is an image as the arguments of build_and_run_instance, rebuild_instance,
// unshelve_instance and prep_resize carry it: a plain dict in Glance's words, not a
// versioned object (nova/image/glance.py:_translate_from_glance). For a boot from
// volume there is only the volume's image metadata, without id.
type Image struct {
	ID              string         `json:"id"`
	Name            string         `json:"name"`
	Status          string         `json:"status"` // "active", "queued", …
	Size            *int64         `json:"size"`   // bytes; nil when unknown
	Checksum        string         `json:"checksum"`
	OSHashAlgo      string         `json:"os_hash_algo"` // "" when Glance has none
	OSHashValue     string         `json:"os_hash_value"`
	DiskFormat      string         `json:"disk_format"`
	ContainerFormat string         `json:"container_format"`
	MinRAM          int            `json:"min_ram"`  // MiB
	MinDisk         int            `json:"min_disk"` // GiB
	Owner           string         `json:"owner"`
	Properties      map[string]any `json:"properties"` // values are strings, except what a caller made of them

	raw map[string]json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler; null is an image without anything.
func (i *Image) UnmarshalJSON(b []byte) error {
	type plain Image
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("decode image: %w", shorten(err))
	}
	if err := json.Unmarshal(b, &p.raw); err != nil {
		return fmt.Errorf("decode image: %w", shorten(err))
	}
	*i = Image(p)
	return nil
}

// MarshalJSON implements json.Marshaler: the fields that were received, with the typed
// ones over them where they differ.
func (i Image) MarshalJSON() ([]byte, error) {
	type plain Image
	now, err := json.Marshal(plain(i))
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(now, &fields); err != nil {
		return nil, err
	}
	if i.raw == nil {
		return json.Marshal(fields)
	}
	was, err := i.received()
	if err != nil {
		return nil, err
	}
	out := maps.Clone(i.raw)
	for name, value := range fields {
		if string(value) != string(was[name]) {
			out[name] = value
		}
	}
	return json.Marshal(out)
}

// received gives the typed fields as they were when the image was decoded.
func (i *Image) received() (map[string]json.RawMessage, error) {
	type plain Image
	b, err := json.Marshal(i.raw)
	if err != nil {
		return nil, err
	}
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, err
	}
	if b, err = json.Marshal(p); err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	return fields, json.Unmarshal(b, &fields)
}

// Property returns a property as text; "" when it is absent, null or no scalar.
func (i *Image) Property(name string) string {
	switch v := i.Properties[name].(type) {
	case string:
		return v
	case bool, float64, json.Number:
		return fmt.Sprint(v)
	}
	return ""
}
