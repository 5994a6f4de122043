package conductor

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// StartAction records an action that begins here and not in the API, e.g. the stop of a
// guest that halted by itself; it belongs to the request id of ctx.
func (c *Client) StartAction(ctx context.Context, uuid, name string) error {
	_, err := c.class(ctx, "InstanceAction", "action_start", []any{uuid, name}, map[string]any{"want_result": false})
	return err
}

// StartEvent records a step of the action that has ctx's request id; event is
// "compute_" and the name of nova-compute's method. The failure InstanceActionNotFound
// means that there is no such action; a context without project takes the newest.
func (c *Client) StartEvent(ctx context.Context, uuid, event, host string) error {
	_, err := c.class(ctx, "InstanceActionEvent", "event_start", []any{uuid, event}, map[string]any{"want_result": false, "host": host})
	return err
}

// FinishEvent records the end of a step: nil, nil is success; otherwise the text that
// users see and the traceback that administrators see. The failure
// InstanceActionEventNotFound means that it was not started.
func (c *Client) FinishEvent(ctx context.Context, uuid, event string, excVal, excTB *string) error {
	_, err := c.class(ctx, "InstanceActionEvent", "event_finish_with_failure", []any{uuid, event},
		map[string]any{"exc_val": excVal, "exc_tb": excTB, "want_result": false})
	return err
}

// Actions lists the newest of an instance's actions, the newest first.
func (c *Client) Actions(ctx context.Context, uuid string, limit int) ([]*object.InstanceAction, error) {
	return list[object.InstanceAction](ctx, c, "InstanceActionList", "get_by_instance_uuid", []any{uuid}, map[string]any{"limit": limit})
}

// Events lists the steps of an action.
func (c *Client) Events(ctx context.Context, actionID int) ([]*object.InstanceActionEvent, error) {
	return list[object.InstanceActionEvent](ctx, c, "InstanceActionEventList", "get_by_action", []any{actionID}, nil)
}

// CreateFault stores an error that users see while the instance is in error.
func (c *Client) CreateFault(ctx context.Context, f *object.InstanceFault) error {
	return c.create(ctx, f, "InstanceFault", []string{"instance_uuid", "code", "message", "details", "host"})
}
