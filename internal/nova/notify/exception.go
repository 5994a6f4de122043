package notify

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Exception tells that a method of the compute API failed
// (nova/exception_wrapper.py:wrap_exception). Of the arguments only the instance's
// identity is told: the others can hold secrets. inst may be nil.
func (e *Emitter) Exception(ctx context.Context, method string, inst *object.Instance, err error) {
	if !e.Enabled() || err == nil {
		return
	}
	log := reqctx.Log(ctx).WithField("method", method)
	if e.legacy {
		payload := map[string]any{"exception": repr(err), "args": identity(inst)}
		if sendErr := e.sender.Notify(ctx, nil, priorityError, "compute."+e.o.Host, method, payload); sendErr != nil {
			log.WithField("send_error", sendErr).Warning("legacy notification is lost")
		}
	}
	if e.versioned {
		payload, buildErr := e.fault(method, err)
		if buildErr == nil {
			buildErr = e.sender.Notify(ctx, e.o.VersionedTopics, priorityError, "nova-compute:"+e.o.Host, "compute.exception", payload)
		}
		if buildErr != nil {
			log.WithField("send_error", buildErr).Warning("versioned notification is lost")
		}
	}
}

func identity(i *object.Instance) map[string]any {
	if i == nil {
		return map[string]any{}
	}
	return map[string]any{"instance": map[string]any{
		"uuid": i.UUID, "display_name": nullable(i.DisplayName), "project_id": nullable(i.ProjectID), "user_id": nullable(i.UserID),
		"host": nullable(i.Host), "node": nullable(i.Node), "vm_state": nullable(i.VMState), "task_state": nullable(i.TaskState),
	}}
}

// fault is the ExceptionPayload of an error; null for none.
func (e *Emitter) fault(function string, err error) (*object.Generic, error) {
	if err == nil {
		return nil, nil
	}
	class, ok := exception.ClassOf(err)
	if !ok {
		class = "Exception"
	}
	return e.payload("ExceptionPayload", fields{
		"module_name": "nova.compute.manager", "function_name": function, "exception": class,
		"exception_message": text(err), "traceback": exception.Traceback(err),
	})
}

// text is an error's message without the class.
func text(err error) string {
	if own, ok := errors.AsType[*exception.Error](err); ok {
		return own.Message
	}
	return err.Error()
}

// repr is how Python prints an exception: Class('message').
func repr(err error) string {
	class, ok := exception.ClassOf(err)
	if !ok {
		class = "Exception"
	}
	message := text(err)
	if message == "" {
		return class + "()"
	}
	b, marshalErr := json.Marshal(message)
	if marshalErr != nil { // a string always encodes
		return class + "()"
	}
	return class + "(" + string(b) + ")"
}
