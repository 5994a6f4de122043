package exception

import (
	"errors"
	"slices"
	"strings"
	"unicode"

	"github.com/compute-agent/compute-agent/rpc"
)

// Bounds of a traceback: the columns that take one have 64 KiB (nova/db/main/models.py:InstanceActionEvent, InstanceFault), and the texts may be
// another service's.
const (
	maxCauses     = 15
	maxTracedLine = 1000 // characters
)

// Traceback says what went wrong in the place where Python has a stack: in action events, in the details of faults, in what the next host of
// a build hears. The first line is the error with the exception that Nova knows it by, as Python prints it. Every other is a cause,
// in words; what a line has said already is not repeated.
//
//	nova.exception.VirtualInterfaceCreateException: Virtual Interface creation failed
//	because: plug port 3f8f5f9e: bridge brq1 is gone
//	and: nova.exception.PortNotFound: Port 3f8f5f9e could not be found.
func Traceback(err error) string {
	if err == nil {
		return ""
	}
	t := traceback{line("", qualifiedName(outermost(err)), message(err))}
	t.causes(err, "because: ")
	for i := range t {
		if runes := []rune(t[i]); len(runes) > maxTracedLine {
			t[i] = string(runes[:maxTracedLine]) + " …"
		}
	}
	return strings.Join(t, "\n")
}

type traceback []string

// causes adds what err wraps; word begins the first line that is added.
func (t *traceback) causes(err error, word string) {
	for i, cause := range wrapped(err) {
		if i > 0 {
			word = "and: "
		}
		next := word
		if name, text := qualifiedName(cause), message(cause); !isJoin(cause) && !t.said(name, text) && len(*t) <= maxCauses {
			*t = append(*t, line(word, name, text))
			next = "because: "
		}
		t.causes(cause, next)
	}
}

// said tells that a line has these words.
func (t *traceback) said(name, text string) bool {
	text = oneLine(text)
	return slices.ContainsFunc(*t, func(line string) bool { return strings.Contains(line, name) && strings.Contains(line, text) })
}

// isJoin tells that an error has no words besides those of the several that it wraps (errors.Join).
func isJoin(err error) bool {
	if _, ok := err.(interface{ Unwrap() []error }); !ok {
		return false
	}
	var texts []string
	for _, one := range wrapped(err) {
		texts = append(texts, one.Error())
	}
	return err.Error() == strings.Join(texts, "\n")
}

// message is an error's text, without the class of an exception.
func message(err error) string {
	switch e := err.(type) { //nolint:errorlint // err itself, not what it wraps
	case *Error:
		return e.Message
	case *rpc.Failure:
		return e.Message
	}
	return err.Error()
}

// qualifiedName is what Python prints of the class of an exception; "": err is none.
func qualifiedName(err error) string {
	module, class, ok := classOf(err)
	if ok && module != "" && module != ModuleBuiltins {
		return module + "." + class
	}
	return class
}

func line(word, name, text string) string {
	if name != "" && text != "" {
		name += ": "
	}
	return word + oneLine(name+text)
}

// oneLine takes line ends and other control characters out of a text.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// outermost is the exception in err's chain by whose class Nova knows it, own or received from another service; nil: none.
func outermost(err error) error {
	if _, _, ok := classOf(err); ok {
		return err
	}
	for _, cause := range wrapped(err) {
		if found := outermost(cause); found != nil {
			return found
		}
	}
	return nil
}

// classOf gives the class of an exception, if err is one.
func classOf(err error) (module, class string, ok bool) {
	switch e := err.(type) { //nolint:errorlint // err itself, not what it wraps
	case *Error:
		return e.Module, e.Class, true
	case *rpc.Failure:
		return e.Module, e.Class, true
	}
	return "", "", false
}

// wrapped are the errors that err wraps.
func wrapped(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if cause := errors.Unwrap(err); cause != nil {
		return []error{cause}
	}
	return nil
}
