// Package exception gives errors the form of Nova's exceptions: class, module,
// message and keyword arguments (nova/exception.py:NovaException). Nova's services
// rebuild the exception from these and choose an HTTP status or a reaction by class.
//
// Errors are mapped to exceptions once, in the compute manager; drivers use sentinels.
package exception

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/compute-agent/compute-agent/rpc"
)

// Modules whose exceptions Nova's services rebuild (nova/rpc.py:ALLOWED_EXMODS).
const (
	ModuleNova     = "nova.exception"
	ModuleBuiltins = "builtins"
)

// class is what this program knows of an exception class.
type class struct {
	parent string // "" for NovaException
	code   int    // HTTP status that goes with it
	format string // message template, Python's %(name)s form
}

// Error is an exception of Nova. Values are made by New and the constructors and
// are not changed afterwards.
type Error struct {
	Class   string         // e.g. "InstanceNotFound"
	Module  string         // ModuleNova or ModuleBuiltins
	Message string         // formatted text, also what a user sees as fault message
	Kwargs  map[string]any // parameters of the template, without code
	Code    int            // fault code; 500 unless the class says otherwise
	cause   error
}

// New makes an exception of a class of nova.exception; the message follows from the
// class's template. A class that is not in the catalogue gets NovaException's code and
// message.
func New(name string, kwargs map[string]any) *Error {
	c, ok := catalog[name]
	if !ok {
		c = catalog["NovaException"]
	}
	return &Error{Class: name, Module: ModuleNova, Message: format(c.format, kwargs), Kwargs: kwargs, Code: c.code}
}

// Error implements error with the message that Nova would show.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Class
	}
	return e.Message
}

// Unwrap gives the cause, if any.
func (e *Error) Unwrap() error { return e.cause }

// Because returns the same exception with a cause, which stays on this host: it is
// for logs and errors.Is and does not travel.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// WithMessage returns the same exception with another text instead of the template's,
// as NovaException(message) does.
func (e *Error) WithMessage(message string) *Error {
	c := *e
	c.Message = message
	return &c
}

// RPCFailure gives the form that travels: the text as only positional argument, which
// wins over the template at the receiver, and the parameters with the code.
func (e *Error) RPCFailure() *rpc.Failure {
	f := &rpc.Failure{Class: e.Class, Module: e.Module, Message: e.Message, Args: []any{}, Kwargs: map[string]any{}}
	if e.Message != "" {
		f.Args = append(f.Args, e.Message)
	}
	if e.Module != ModuleBuiltins { // builtin exceptions take no keyword arguments
		maps.Copy(f.Kwargs, e.Kwargs)
		f.Kwargs["code"] = e.Code
	}
	return f
}

// format fills a template; a parameter that is missing leaves the whole template as it
// is, as NovaException does.
func format(template string, kwargs map[string]any) string {
	var out strings.Builder
	rest := template
	for {
		before, after, ok := strings.Cut(rest, "%(")
		if !ok {
			return out.String() + rest
		}
		name, tail, ok := strings.Cut(after, ")")
		value, known := kwargs[name]
		if !ok || !known || tail == "" {
			return template
		}
		out.WriteString(before)
		fmt.Fprint(&out, value)
		rest = tail[1:] // the conversion: s, d or i
	}
}

// ClassOf returns the class of the outermost exception in err's chain, own or received
// from another service.
func ClassOf(err error) (string, bool) {
	_, class, ok := classOf(outermost(err))
	return class, ok
}

// Is reports whether err's exception, own or remote, is of the class or of one derived
// from it, as Python's except does: UnexpectedDeletingTaskStateError is also an
// UnexpectedTaskStateError.
func Is(err error, name string) bool {
	found, ok := ClassOf(err)
	for ok {
		if found == name {
			return true
		}
		var c class
		if c, ok = catalog[found]; ok {
			found, ok = c.parent, c.parent != ""
		}
	}
	return false
}

// Describe gives what an instance fault shows of an error: the code and message of an
// exception, otherwise 500 and the error's text (nova/compute/utils.py:_get_fault_details
// shows only the class name; an operator needs the cause). A fault's message is cut to 255 characters.
func Describe(err error) (code int, message string) {
	code, message = 500, err.Error()
	var own *Error
	var remote *rpc.Failure
	switch {
	case errors.As(err, &own):
		code, message = own.Code, own.Error()
	case errors.As(err, &remote):
		code = remoteCode(remote)
		message = remote.Message
		if message == "" {
			message = remote.Class
		}
	}
	if runes := []rune(message); len(runes) > 255 {
		message = string(runes[:255])
	}
	return code, message
}

func remoteCode(f *rpc.Failure) int {
	if code, ok := f.Kwargs["code"].(float64); ok {
		return int(code)
	}
	if c, ok := catalog[f.Class]; ok {
		return c.code
	}
	return 500
}

// WithCause makes an exception of a class with a text of its own (empty: the class's
// template) and a cause.
func WithCause(name, message string, kwargs map[string]any, cause error) *Error {
	e := New(name, kwargs)
	if message != "" {
		e.Message = message
	}
	e.cause = cause
	return e
}
