package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Modules and classes of failures that the dispatcher itself raises
// (oslo_messaging/rpc/dispatcher.py).
const (
	moduleBuiltins   = "builtins"
	moduleDispatcher = "oslo_messaging.rpc.dispatcher"
)

// Failure is an exception as it travels in a reply
// (oslo_messaging/_drivers/common.py:serialize_remote_exception). A received one
// is what Client.Call returns; a handler may return one to have it sent as it is.
type Failure struct {
	Class     string
	Module    string
	Message   string
	Args      []any          // positional arguments for the receiver's constructor
	Kwargs    map[string]any // keyword arguments for it
	Traceback []string       // lines, each with its newline; made up if empty
}

// Error gives class and message, without the traceback.
func (f *Failure) Error() string {
	if f.Message == "" {
		return f.Class
	}
	return f.Class + ": " + f.Message
}

// RPCFailure lets a Failure pass through a handler unchanged.
func (f *Failure) RPCFailure() *Failure { return f }

// failureJSON is the content of the "failure" string of a reply.
type failureJSON struct {
	Class     string         `json:"class"`
	Module    string         `json:"module"`
	Message   string         `json:"message"`
	Traceback []string       `json:"tb"`
	Args      []any          `json:"args"`
	Kwargs    map[string]any `json:"kwargs"`
}

// failureOf turns the error of a handler into what travels: its own failure if
// it has one, otherwise a plain builtins.Exception with the error's text.
func failureOf(err error) *Failure {
	var own interface{ RPCFailure() *Failure }
	if errors.As(err, &own) {
		if f := own.RPCFailure(); f != nil {
			return f
		}
	}
	return builtin("Exception", err.Error())
}

// isFailure tells whether err travels as a failure of its own.
func isFailure(err error) bool {
	var own interface{ RPCFailure() *Failure }
	return errors.As(err, &own) && own.RPCFailure() != nil
}

// builtin returns a failure of a Python builtin class, which every receiver can rebuild.
func builtin(class, message string) *Failure {
	return &Failure{Class: class, Module: moduleBuiltins, Message: message, Args: []any{message}}
}

// unsupportedVersion is dispatcher.py:UnsupportedVersion.
func unsupportedVersion(version, method string) *Failure {
	text := fmt.Sprintf("Endpoint does not support RPC version %s. Attempted method: %s", version, method)
	return &Failure{Class: "UnsupportedVersion", Module: moduleDispatcher, Message: text, Args: []any{text}}
}

// noSuchMethod is dispatcher.py:NoSuchMethod.
func noSuchMethod(method string) *Failure {
	text := "Endpoint does not support RPC method " + method
	return &Failure{Class: "NoSuchMethod", Module: moduleDispatcher, Message: text, Args: []any{text}}
}

// encode gives the JSON string content of a reply's "failure".
func (f *Failure) encode() ([]byte, error) {
	out := failureJSON{
		Class: f.Class, Module: f.Module, Message: f.Message,
		Traceback: f.Traceback, Args: f.Args, Kwargs: f.Kwargs,
	}
	if out.Args == nil {
		out.Args = []any{}
	}
	if out.Kwargs == nil {
		out.Kwargs = map[string]any{}
	}
	if len(out.Traceback) == 0 {
		out.Traceback = []string{"Traceback (most recent call last):\n", f.lastLine()}
	}
	return marshal(out)
}

// lastLine is what Python prints at the end of a traceback.
func (f *Failure) lastLine() string {
	name := f.Class
	if f.Module != "" && f.Module != moduleBuiltins {
		name = f.Module + "." + f.Class
	}
	if f.Message != "" {
		name += ": " + f.Message
	}
	return name + "\n"
}

// decodeFailure reads the "failure" string of a reply. What cannot be read still
// is a failure: the text becomes its message.
func decodeFailure(text string) *Failure {
	var in struct {
		Class     string          `json:"class"`
		Module    string          `json:"module"`
		Message   string          `json:"message"`
		Traceback json.RawMessage `json:"tb"`
		Args      []any           `json:"args"`
		Kwargs    map[string]any  `json:"kwargs"`
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil || in.Class == "" {
		return &Failure{Class: "RemoteError", Module: "oslo_messaging.rpc.client", Message: text, Args: []any{text}}
	}
	f := &Failure{
		// A failure that was forwarded by its receiver carries the dynamic class name.
		Class: strings.TrimSuffix(in.Class, "_Remote"), Module: strings.TrimSuffix(in.Module, "_Remote"),
		Message: in.Message, Args: in.Args, Kwargs: in.Kwargs,
	}
	if json.Unmarshal(in.Traceback, &f.Traceback) != nil {
		var one string
		if json.Unmarshal(in.Traceback, &one) == nil && one != "" {
			f.Traceback = []string{one}
		}
	}
	return f
}
