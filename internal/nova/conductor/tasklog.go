package conductor

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// rawTimeLayout is how a time travels outside of an object (oslo.serialization jsonutils).
const rawTimeLayout = "2006-01-02T15:04:05.000000"

// TaskLog finds the record of a periodic task that ran for a period on this host; nil
// when it did not.
func (c *Client) TaskLog(ctx context.Context, task string, begin, end time.Time, host string) (*object.TaskLog, error) {
	return get[object.TaskLog](ctx, c, "TaskLog", "get",
		[]any{task, begin.UTC().Format(rawTimeLayout), end.UTC().Format(rawTimeLayout), host}, nil)
}

// BeginTask records the start of a task for a period; Host, TaskName, the period,
// TaskItems and Message are stored. The failure TaskAlreadyRunning means that another
// process began it.
func (c *Client) BeginTask(ctx context.Context, t *object.TaskLog) error {
	return c.task(ctx, t, "begin_task", []string{"task_name", "host", "period_beginning", "period_ending", "task_items", "message"})
}

// EndTask records the end with Errors and Message.
func (c *Client) EndTask(ctx context.Context, t *object.TaskLog) error {
	return c.task(ctx, t, "end_task", []string{"task_name", "host", "period_beginning", "period_ending", "errors", "message"})
}

func (c *Client) task(ctx context.Context, t *object.TaskLog, method string, fields []string) error {
	h := t.Head()
	if h.Class == "" {
		*h = object.New("TaskLog", c.release.ObjectVersion("TaskLog"))
	}
	if err := object.Mark(t, fields...); err != nil {
		return err
	}
	g, err := c.small(t, "TaskLog", fields, nil)
	if err != nil {
		return err
	}
	g.Changes = fields
	updates, _, err := c.action(ctx, g, "TaskLog", method, nil, nil)
	if err != nil {
		return err
	}
	return stored(t, "TaskLog", nil, updates)
}
