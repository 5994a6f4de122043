package novatest

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// action is an entry of an instance's history.
type action struct {
	id             int
	name, instance string
	request        *reqctx.Request
	events         []*Event
}

// Event is what a service did for an action.
type Event struct {
	Request, Name, Host        string
	Began                      time.Time
	Result, Details, Traceback string // Result: "" until it has ended

	id int
}

// StartAction records what the API would when a user asks for something.
func (c *Conductor) StartAction(instance, name string, from *reqctx.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newAction(instance, name, from)
}

// StartEvent records that a service began something at some time for the newest action.
func (c *Conductor) StartEvent(instance, name, host string, began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newEvent(c.newestAction(instance), name, host, began)
}

// Events returns the events of an instance with that name, the oldest first.
func (c *Conductor) Events(instance, name string) []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Event
	for _, a := range c.actions {
		for _, e := range a.events {
			if a.instance == instance && e.Name == name {
				found = append(found, *e)
			}
		}
	}
	return found
}

func (c *Conductor) newAction(instance, name string, from *reqctx.Request) *action {
	a := &action{id: c.nextID, name: name, instance: instance, request: from}
	c.nextID++
	c.actions = append(c.actions, a)
	return a
}

func (c *Conductor) newEvent(a *action, name, host string, began time.Time) {
	a.events = append(a.events, &Event{Request: a.request.RequestID, Name: name, Host: host, Began: began, id: c.nextID})
	c.nextID++
}

func (c *Conductor) newestAction(instance string) *action {
	for _, a := range slices.Backward(c.actions) {
		if a.instance == instance {
			return a
		}
	}
	return nil
}

// actionOf finds the action that a request belongs to (nova/db/main/api.py:action_event_start).
func (c *Conductor) actionOf(in *request) *action {
	instance := in.arg(0, "")
	for _, a := range slices.Backward(c.actions) {
		if a.instance == instance && a.request.RequestID == in.from.RequestID {
			return a
		}
	}
	if in.from.ProjectID != "" {
		return nil
	}
	return c.newestAction(instance)
}

func startAction(c *Conductor, in *request) (json.RawMessage, error) {
	c.newAction(in.arg(0, ""), in.arg(1, ""), in.from)
	return null, nil
}

// startEvent makes the action of a user's request, which the API did before.
func startEvent(c *Conductor, in *request) (json.RawMessage, error) {
	a, name := c.actionOf(in), in.arg(1, "")
	if a == nil {
		a = c.newAction(in.arg(0, ""), strings.TrimSuffix(strings.TrimPrefix(name, "compute_"), "_instance"), in.from)
	}
	c.newEvent(a, name, text(in.Kwargs["host"]), time.Now())
	return null, nil
}

// finishEvent ends the first event of the name, ended or not.
func finishEvent(c *Conductor, in *request) (json.RawMessage, error) {
	a := c.actionOf(in)
	if a == nil {
		return nil, Failure("InstanceActionNotFound")
	}
	name := in.arg(1, "")
	at := slices.IndexFunc(a.events, func(e *Event) bool { return e.Name == name })
	if at < 0 {
		return nil, Failure("InstanceActionEventNotFound")
	}
	e := a.events[at]
	e.Result, e.Details, e.Traceback = "Success", text(in.Kwargs["exc_val"]), text(in.Kwargs["exc_tb"])
	if string(in.Kwargs["exc_tb"]) != "null" {
		e.Result = "Error"
	}
	return null, nil
}

func actionsOfInstance(c *Conductor, in *request) (json.RawMessage, error) {
	var limit int
	if err := json.Unmarshal(in.Kwargs["limit"], &limit); err != nil {
		return nil, err
	}
	var found []json.RawMessage
	for _, a := range slices.Backward(c.actions) {
		if a.instance == in.arg(0, "") && len(found) < limit {
			found = append(found, Object("InstanceAction", Fields{
				"id": Raw(a.id), "action": Raw(a.name), "instance_uuid": Raw(a.instance), "request_id": Raw(a.request.RequestID),
				"user_id": orNull(a.request.UserID), "project_id": orNull(a.request.ProjectID),
			}))
		}
	}
	return list("InstanceActionList", found), nil
}

// eventsOfAction gives the newest event first.
func eventsOfAction(c *Conductor, in *request) (json.RawMessage, error) {
	var found []json.RawMessage
	for _, a := range c.actions {
		for _, e := range slices.Backward(a.events) {
			if string(in.Args[0]) != string(Raw(a.id)) {
				continue
			}
			fields := Fields{
				"id": Raw(e.id), "event": Raw(e.Name), "action_id": Raw(a.id), "host": orNull(e.Host), "result": orNull(e.Result),
				"start_time": Raw(e.Began.UTC().Format("2006-01-02T15:04:05Z")), "finish_time": null,
			}
			if e.Result != "" {
				fields["finish_time"] = fields["start_time"]
			}
			found = append(found, Object("InstanceActionEvent", fields))
		}
	}
	return list("InstanceActionEventList", found), nil
}

func orNull(s string) json.RawMessage {
	if s == "" {
		return null
	}
	return Raw(s)
}
