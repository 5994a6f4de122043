package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Dict is a JSON object of free form that keeps its key order, so that a text which
// Nova stored comes back the same. The zero value is the empty object. Copies share
// their content until one of them is Set.
type Dict struct {
	keys   []string
	values map[string]json.RawMessage
	null   bool // null on the wire instead of {}
}

// Keys returns the keys in their order.
func (d Dict) Keys() []string { return slices.Clone(d.keys) }

// Raw returns one value as it came; nil when absent.
func (d Dict) Raw(key string) json.RawMessage { return d.values[key] }

// Get decodes one value; false when it is absent, null or of another type.
func (d Dict) Get(key string, into any) bool {
	raw, ok := d.values[key]
	return ok && string(raw) != "null" && json.Unmarshal(raw, into) == nil
}

// Text returns a string value; "" when it is absent or no string.
func (d Dict) Text(key string) string {
	var s string
	if !d.Get(key, &s) {
		return ""
	}
	return s
}

// Bool returns a boolean value; false when it is absent or no boolean.
func (d Dict) Bool(key string) bool {
	var b bool
	return d.Get(key, &b) && b
}

// Int returns an integer value; 0 when it is absent or no integer.
func (d Dict) Int(key string) int {
	var n int
	if !d.Get(key, &n) {
		return 0
	}
	return n
}

// With returns the dict with one value set, at the end if the key is new.
func (d Dict) With(key string, value any) (Dict, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return d, fmt.Errorf("encode key %s: %w", key, err)
	}
	out := Dict{keys: slices.Clone(d.keys), values: make(map[string]json.RawMessage, len(d.values)+1)}
	maps.Copy(out.values, d.values)
	if _, ok := out.values[key]; !ok {
		out.keys = append(out.keys, key)
	}
	out.values[key] = raw
	return out, nil
}

// Without returns the dict without some keys.
func (d Dict) Without(drop ...string) Dict {
	out := Dict{values: map[string]json.RawMessage{}, null: d.null}
	for _, k := range d.keys {
		if !slices.Contains(drop, k) {
			out.keys = append(out.keys, k)
			out.values[k] = d.values[k]
		}
	}
	return out
}

// MarshalJSON implements json.Marshaler.
func (d Dict) MarshalJSON() ([]byte, error) {
	if d.null && len(d.keys) == 0 {
		return []byte("null"), nil
	}
	var buf bytes.Buffer
	buf.WriteByte('{')
	for i, k := range d.keys {
		if i > 0 {
			buf.WriteByte(',')
		}
		name, err := json.Marshal(k)
		if err != nil {
			return nil, err
		}
		buf.Write(name)
		buf.WriteByte(':')
		buf.Write(d.values[k])
	}
	buf.WriteByte('}')
	return buf.Bytes(), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Dict) UnmarshalJSON(b []byte) error {
	*d = Dict{}
	if string(bytes.TrimSpace(b)) == "null" {
		d.null = true
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New("found another JSON value where an object is expected")
	}
	d.values = map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return errors.New("object key is no string")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if _, ok := d.values[key]; !ok {
			d.keys = append(d.keys, key)
		}
		d.values[key] = raw
	}
	_, err := dec.Token()
	return err
}
