package control

import (
	"errors"
	"net/http"

	"github.com/compute-agent/compute-agent/imagesync"
)

// Errors that callers may test, beside those of imagesync.
var (
	// ErrNoAgent: nobody serves the socket.
	ErrNoAgent = errors.New("no agent serves the control socket")
	// ErrAgentEnded: the agent ended while a request was under way.
	ErrAgentEnded = errors.New("the agent ended before it had answered")
	// ErrForbidden: the socket is root's.
	ErrForbidden = errors.New("only root may use the control socket")
	// ErrStarting: the agent is not yet in touch with nova.
	ErrStarting = errors.New("the agent has not reached the control plane yet")
	// ErrRequest: the request makes no sense.
	ErrRequest = errors.New("request is not valid")
)

// failure is an error on the wire.
type failure struct {
	Message   string   `json:"message"`
	Class     string   `json:"class,omitempty"` // key of classes
	Instances []string `json:"instances,omitempty"`
}

// class is an error that survives the socket.
type class struct {
	name   string
	err    error
	status int
}

var classes = []class{
	{"not_found", imagesync.ErrNotFound, http.StatusNotFound},
	{"in_use", imagesync.ErrInUse, http.StatusConflict},
	{"exists", imagesync.ErrExists, http.StatusConflict},
	{"no_space", imagesync.ErrNoSpace, http.StatusInsufficientStorage},
	{"hash_mismatch", imagesync.ErrHashMismatch, http.StatusUnprocessableEntity},
	{"forbidden", ErrForbidden, http.StatusForbidden},
	{"request", ErrRequest, http.StatusBadRequest},
	{"starting", ErrStarting, http.StatusServiceUnavailable},
}

func toWire(err error) (failure, int) {
	f, status := failure{Message: err.Error()}, http.StatusInternalServerError
	for _, c := range classes {
		if errors.Is(err, c.err) {
			f.Class, status = c.name, c.status
			break
		}
	}
	if bad, ok := errors.AsType[*imagesync.UnacceptableError](err); ok {
		f.Class, status = "unacceptable", http.StatusUnprocessableEntity
		f.Message = bad.Error()
	}
	if used, ok := errors.AsType[*imagesync.InUseError](err); ok {
		f.Instances = used.Instances
	}
	return f, status
}

// remote is an error that came over the socket.
type remote struct {
	message string
	class   error
}

// Error implements error.
func (e *remote) Error() string { return e.message }

// Unwrap gives the class.
func (e *remote) Unwrap() error { return e.class }

func fromWire(f failure) error {
	e := &remote{message: f.Message}
	for _, c := range classes {
		if c.name == f.Class {
			e.class = c.err
		}
	}
	if f.Class == "in_use" {
		e.class = &imagesync.InUseError{Instances: f.Instances}
	}
	return e
}
