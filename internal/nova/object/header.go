package object

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// namespace is the only project namespace of Nova's objects (nova/objects/base.py:NovaObject).
const namespace = "nova"

// Header is the envelope of a versioned object and its fields as received.
// It is embedded in every object type.
type Header struct {
	Class     string                     // class name, e.g. "Instance"
	Namespace string                     // always "nova"
	Version   string                     // "X.Y", the sender's version; sent back unchanged
	Data      map[string]json.RawMessage // every field that is set, unknown ones too
	Changes   []string                   // names of changed fields, a set; nil when nothing changed
}

// New returns the header of an object that is built here.
func New(class, version string) Header {
	return Header{Class: class, Namespace: namespace, Version: version, Data: map[string]json.RawMessage{}}
}

// Object is any versioned object of this package.
type Object interface {
	// Head returns the object's envelope.
	Head() *Header
	json.Marshaler
	json.Unmarshaler
}

// Head returns the envelope itself; it makes every type that embeds Header an Object.
func (h *Header) Head() *Header { return h }

// IsSet reports whether the sender had loaded the field; null counts as set.
func (h *Header) IsSet(field string) bool {
	_, ok := h.Data[field]
	return ok
}

// IsNull reports whether the field is set to null.
func (h *Header) IsNull(field string) bool {
	return string(h.Data[field]) == "null"
}

// String names the object without its content, which can hold secrets.
func (h Header) String() string { return h.Class + " " + h.Version }

// GoString is String, so that no formatting verb prints the content.
func (h Header) GoString() string { return h.String() }

// FormatError tells which part of a received object cannot be used.
type FormatError struct {
	Class   string // class of the object, or the one that was expected
	Version string // "" when not known
	Field   string // "" when the envelope itself is wrong
	Err     error
}

// Error implements error; it never quotes the value of a field.
func (e *FormatError) Error() string {
	s := "decode " + e.Class
	if e.Version != "" {
		s += " " + e.Version
	}
	if e.Field != "" {
		s += " field " + e.Field
	}
	return s + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *FormatError) Unwrap() error { return e.Err }

// envelope is the wire form of an object.
type envelope struct {
	Name      *string                    `json:"nova_object.name"`
	Namespace *string                    `json:"nova_object.namespace"`
	Version   *string                    `json:"nova_object.version"`
	Data      map[string]json.RawMessage `json:"nova_object.data"`
	Changes   []string                   `json:"nova_object.changes,omitempty"`
}

// parseHeader reads an envelope; class is the expected class, "" for any.
func parseHeader(b []byte, class string) (Header, error) {
	fault := func(version string, err error) (Header, error) {
		name := class
		if name == "" {
			name = "object"
		}
		return Header{}, &FormatError{Class: name, Version: version, Err: err}
	}
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return fault("", shorten(err))
	}
	switch {
	case e.Name == nil || *e.Name == "":
		return fault("", errors.New("not a versioned object"))
	case class != "" && *e.Name != class:
		return fault("", fmt.Errorf("found an object of class %.64q", *e.Name))
	case e.Namespace == nil || *e.Namespace != namespace:
		return fault("", errors.New("namespace is not nova"))
	case e.Version == nil:
		return fault("", errors.New("version is missing"))
	case e.Data == nil:
		return fault(*e.Version, errors.New("data is missing"))
	}
	major, err := majorOf(*e.Version)
	if err != nil {
		return fault("", err)
	}
	if want := majorVersion(*e.Name); major != want {
		return fault(*e.Version, fmt.Errorf("major version %d is not supported, only %d", major, want))
	}
	return Header{Class: *e.Name, Namespace: *e.Namespace, Version: *e.Version, Data: e.Data, Changes: e.Changes}, nil
}

// majorOf reads the first part of "X.Y" or "X.Y.Z".
func majorOf(version string) (int, error) {
	parts := strings.Split(version, ".")
	if len(parts) != 2 && len(parts) != 3 {
		return 0, fmt.Errorf("version %.64q is not of the form X.Y", version)
	}
	var major int
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("version %.64q is not of the form X.Y", version)
		}
		if i == 0 {
			major = n
		}
	}
	return major, nil
}

// majorVersion is the major version of a class in every release from Zed on
// (test_objects.py:object_data).
func majorVersion(class string) int {
	switch class {
	case "Instance", "InstanceList",
		"CellMappingPayload", "InstanceExistsPayload", "InstanceUpdatePayload":
		return 2
	}
	return 1
}

// encodeHeader writes an envelope.
func encodeHeader(h *Header, data map[string]json.RawMessage, changes []string) ([]byte, error) {
	if data == nil {
		data = map[string]json.RawMessage{}
	}
	return json.Marshal(envelope{Name: &h.Class, Namespace: &h.Namespace, Version: &h.Version, Data: data, Changes: changes})
}

// shorten drops the offending value from an error of encoding/json: fields can hold secrets.
func shorten(err error) error {
	if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		kind, _, _ := strings.Cut(typeErr.Value, " ") // "number 12" → "number"
		return fmt.Errorf("found a JSON %s where %s is expected", kind, typeErr.Type)
	}
	return err
}

// addChange adds names to a change set.
func addChange(changes []string, names ...string) []string {
	changes = slices.Clone(changes)
	for _, n := range names {
		if !slices.Contains(changes, n) {
			changes = append(changes, n)
		}
	}
	return changes
}

// Generic is an object of any class, without typed fields.
type Generic struct{ Header }

// UnmarshalJSON implements json.Unmarshaler.
func (o *Generic) UnmarshalJSON(b []byte) error {
	h, err := parseHeader(b, "")
	if err != nil {
		return err
	}
	o.Header = h
	return nil
}

// MarshalJSON implements json.Marshaler.
func (o Generic) MarshalJSON() ([]byte, error) {
	return encodeHeader(&o.Header, o.Data, o.Changes)
}

// Clone returns an object's header with its own maps, for a changed copy.
func (h *Header) Clone() Header {
	c := *h
	c.Data = maps.Clone(h.Data)
	c.Changes = slices.Clone(h.Changes)
	return c
}
