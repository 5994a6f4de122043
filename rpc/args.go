package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Args are the keyword arguments of a request, each as received.
type Args map[string]json.RawMessage

// Decode reads one argument. A missing one, or one of another type than into,
// is an *ArgumentError, which travels as a Python TypeError.
func (a Args) Decode(name string, into any) error {
	raw, ok := a[name]
	if !ok {
		return &ArgumentError{Name: name}
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return &ArgumentError{Name: name, Cause: err}
	}
	return nil
}

// DecodeOptional reads one argument if it is there and not null, and leaves into
// alone otherwise.
func (a Args) DecodeOptional(name string, into any) error {
	raw, ok := a[name]
	if !ok || bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return nil
	}
	return a.Decode(name, into)
}

// ArgumentError is a missing or mistyped argument of a request.
type ArgumentError struct {
	Name  string
	Cause error // nil if the argument is missing
}

// Error names the argument.
func (e *ArgumentError) Error() string {
	if e.Cause == nil {
		return "missing required argument: '" + e.Name + "'"
	}
	return fmt.Sprintf("argument '%s' has a wrong type: %v", e.Name, e.Cause)
}

// Unwrap gives the decoding error.
func (e *ArgumentError) Unwrap() error { return e.Cause }

// RPCFailure makes it a TypeError, as Python raises for a wrong signature.
func (e *ArgumentError) RPCFailure() *Failure { return builtin("TypeError", e.Error()) }
