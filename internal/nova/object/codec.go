package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// field is one typed field of an object type, from its tag
//
//	nova:"name[,null][,text]"
//
// null: the zero value is encoded as null (a nullable field). text: the wire form
// is a string that holds JSON.
type field struct {
	name       string
	index      []int
	null, text bool
}

// plans holds the fields of each object type: reflect.Type → []field.
var plans sync.Map

func fieldsOf(t reflect.Type) []field {
	if p, ok := plans.Load(t); ok {
		return p.([]field)
	}
	var list []field
	for _, sf := range reflect.VisibleFields(t) {
		tag := sf.Tag.Get("nova")
		if tag == "" {
			continue
		}
		parts := strings.Split(tag, ",")
		list = append(list, field{
			name: parts[0], index: sf.Index,
			null: slices.Contains(parts[1:], "null"), text: slices.Contains(parts[1:], "text"),
		})
	}
	p, _ := plans.LoadOrStore(t, list)
	return p.([]field)
}

// decode fills o, a pointer to an object struct, from an envelope of the given class.
func decode(b []byte, o Object, class string) error {
	if string(bytes.TrimSpace(b)) == "null" {
		return nil // the convention of encoding/json: null changes nothing
	}
	h, err := parseHeader(b, class)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(o).Elem()
	v.SetZero()
	*o.Head() = h
	for _, f := range fieldsOf(v.Type()) {
		raw, ok := h.Data[f.name]
		if !ok {
			continue
		}
		if err := f.decode(raw, v.FieldByIndex(f.index)); err != nil {
			return &FormatError{Class: h.Class, Version: h.Version, Field: f.name, Err: err}
		}
	}
	return nil
}

func (f *field) decode(raw json.RawMessage, into reflect.Value) error {
	if f.text {
		var s *string
		if err := json.Unmarshal(raw, &s); err != nil {
			return shorten(err)
		}
		if s == nil || *s == "" {
			into.SetZero()
			return nil
		}
		raw = json.RawMessage(*s)
	}
	if err := json.Unmarshal(raw, into.Addr().Interface()); err != nil {
		return shorten(err)
	}
	return nil
}

func (f *field) encode(v reflect.Value) (json.RawMessage, error) {
	if f.null && v.IsZero() {
		return json.RawMessage("null"), nil
	}
	if f.text {
		b, err := pythonJSON(v.Interface())
		if err != nil {
			return nil, err
		}
		return json.Marshal(string(b))
	}
	switch {
	case v.Kind() == reflect.Slice && v.IsNil():
		return json.RawMessage("[]"), nil
	case v.Kind() == reflect.Map && v.IsNil():
		return json.RawMessage("{}"), nil
	}
	return json.Marshal(v.Interface())
}

// current returns the fields as they would be encoded now: those received, and over
// them every typed field that was assigned another value.
func current(o Object) (map[string]json.RawMessage, []string, error) {
	h := o.Head()
	data, changes := h.Data, h.Changes
	cloned := false
	v := reflect.ValueOf(o).Elem()
	for _, f := range fieldsOf(v.Type()) {
		raw, changed, err := f.changed(h, v)
		if err != nil {
			return nil, nil, err
		}
		if !changed {
			continue
		}
		if !cloned {
			cloned = true
			if data = maps.Clone(data); data == nil {
				data = map[string]json.RawMessage{}
			}
		}
		data[f.name] = raw
		changes = addChange(changes, f.name)
	}
	return data, changes, nil
}

// changed encodes the field of an object's value v, if the typed value says something else than the received one.
func (f *field) changed(h *Header, v reflect.Value) (raw json.RawMessage, changed bool, err error) {
	fv := v.FieldByIndex(f.index)
	same, err := f.unchanged(h, fv)
	if err == nil && !same {
		raw, err = f.encode(fv)
	}
	if err != nil {
		return nil, false, fmt.Errorf("encode %s field %s: %w", h, f.name, err)
	}
	return raw, !same, nil
}

// unchanged reports whether the typed value still says what the received field says.
func (f *field) unchanged(h *Header, v reflect.Value) (bool, error) {
	raw, set := h.Data[f.name]
	if !set {
		return v.IsZero(), nil
	}
	was := reflect.New(v.Type()).Elem()
	if err := f.decode(raw, was); err != nil {
		return false, err
	}
	return reflect.DeepEqual(was.Interface(), v.Interface()), nil
}

// encode writes an object with its present values.
func encode(o Object) ([]byte, error) {
	data, changes, err := current(o)
	if err != nil {
		return nil, err
	}
	return encodeHeader(o.Head(), data, changes)
}

// Field returns one field as it would be encoded now; false: it is not set.
func Field(o Object, name string) (json.RawMessage, bool, error) {
	h := o.Head()
	raw, set := h.Data[name]
	v := reflect.ValueOf(o).Elem()
	for _, f := range fieldsOf(v.Type()) {
		if f.name != name {
			continue
		}
		now, changed, err := f.changed(h, v)
		if err != nil || changed {
			return now, err == nil, err
		}
	}
	return raw, set, nil
}

// Mark stores the named typed fields, zero or not, as set and changed; without
// names all typed fields (an object built from nothing is sent with all of its
// fields in its changes).
func Mark(o Object, names ...string) error {
	h := o.Head()
	if h.Data == nil {
		h.Data = map[string]json.RawMessage{}
	}
	v := reflect.ValueOf(o).Elem()
	for _, f := range fieldsOf(v.Type()) {
		if len(names) > 0 && !slices.Contains(names, f.name) {
			continue
		}
		raw, err := f.encode(v.FieldByIndex(f.index))
		if err != nil {
			return fmt.Errorf("encode %s field %s: %w", h, f.name, err)
		}
		h.Data[f.name] = raw
		h.Changes = addChange(h.Changes, f.name)
	}
	return nil
}

// Encode gives the wire form of a set of field values, in the types of o: a value may
// be a Go value that encodes to the field's form, nil for null, or a json.RawMessage.
// A field with a string of JSON inside (InstanceInfoCache.network_info) takes its typed value.
func Encode(o Object, values map[string]any) (map[string]json.RawMessage, error) {
	fields := fieldsOf(reflect.TypeOf(o).Elem())
	out := make(map[string]json.RawMessage, len(values))
	for name, value := range values {
		raw, err := encodeValue(fields, name, value)
		if err != nil {
			return nil, fmt.Errorf("encode %s field %s: %w", o.Head(), name, err)
		}
		out[name] = raw
	}
	return out, nil
}

func encodeValue(fields []field, name string, value any) (json.RawMessage, error) {
	i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
	if i >= 0 && fields[i].text {
		switch value.(type) {
		case nil, string, json.RawMessage:
		default:
			return fields[i].encode(reflect.ValueOf(value))
		}
	}
	return json.Marshal(value)
}

// changedKey is the one key among the updates of a remote method that is no field
// (nova/conductor/manager.py:ConductorManager.object_action).
const changedKey = "obj_what_changed"

// Apply stores what a remote method of the object returned: the fields that differ
// or were not set, and the new change set. Keys that are no typed field are kept in Data.
// On an error the object is unchanged.
func Apply(o Object, updates map[string]json.RawMessage) error {
	changed, hasChanged := updates[changedKey]
	var names []string
	if hasChanged {
		if err := json.Unmarshal(changed, &names); err != nil {
			return &FormatError{Class: o.Head().Class, Version: o.Head().Version, Field: changedKey, Err: shorten(err)}
		}
	}
	fields := maps.Clone(updates)
	delete(fields, changedKey)
	if err := set(o, fields); err != nil {
		return err
	}
	if hasChanged {
		o.Head().Changes = names
	}
	return nil
}

// Set stores field values and marks them as changed; values as for Encode.
// On an error the object is unchanged.
func Set(o Object, values map[string]any) error {
	raw, err := Encode(o, values)
	if err != nil {
		return err
	}
	if err := set(o, raw); err != nil {
		return err
	}
	h := o.Head()
	h.Changes = addChange(h.Changes, slices.Sorted(maps.Keys(raw))...)
	return nil
}

// set stores fields in Data and in the typed view; all or nothing.
func set(o Object, fields map[string]json.RawMessage) error {
	h := o.Head()
	v := reflect.ValueOf(o).Elem()
	type assignment struct{ to, value reflect.Value }
	var todo []assignment
	for _, f := range fieldsOf(v.Type()) {
		raw, ok := fields[f.name]
		if !ok {
			continue
		}
		fv := v.FieldByIndex(f.index)
		value := reflect.New(fv.Type()).Elem()
		if err := f.decode(raw, value); err != nil {
			return &FormatError{Class: h.Class, Version: h.Version, Field: f.name, Err: err}
		}
		todo = append(todo, assignment{fv, value})
	}
	data := maps.Clone(h.Data)
	if data == nil {
		data = map[string]json.RawMessage{}
	}
	maps.Copy(data, fields)
	h.Data = data
	for _, a := range todo {
		a.to.Set(a.value)
	}
	return nil
}

// List decodes what Nova sends as a list of objects: a …List object, a plain JSON
// list of objects, or null.
func List[T any](raw json.RawMessage) ([]*T, error) {
	trimmed := bytes.TrimSpace(raw)
	if len(trimmed) == 0 || string(trimmed) == "null" {
		return nil, nil
	}
	if trimmed[0] == '{' {
		h, err := parseHeader(raw, "")
		if err != nil {
			return nil, err
		}
		objects, ok := h.Data["objects"]
		if !ok {
			return nil, &FormatError{Class: h.Class, Version: h.Version, Field: "objects", Err: errors.New("not set")}
		}
		trimmed = objects
	}
	var out []*T
	if err := json.Unmarshal(trimmed, &out); err != nil {
		return nil, shorten(err)
	}
	if slices.Contains(out, nil) {
		return nil, errors.New("decode list of objects: null inside")
	}
	return out, nil
}
