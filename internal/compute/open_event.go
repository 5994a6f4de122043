package compute

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// errCutOff is the result of an operation that nobody carries on.
var errCutOff = errors.New("the agent was stopped while it worked on this server")

// openEvent is an action event that an earlier process began and gave no result. Nothing of it is kept on this host: Nova knows
// all of it. nova-compute leaves such an event open; what its next start completes it tells the newest action, whatever that
// is (nova/db/main/api.py:action_event_start).
type openEvent struct {
	request *reqctx.Request // the action's, which the event is found by
	began   time.Time       // by the conductor's clock, in whole seconds
}

// begunEvents are the events that operations of this process have begun: what the start finds open in Nova may be of a message that has
// come since, and waits for the instance's lock.
type begunEvents struct{ events sync.Map } // of begunEvent

type begunEvent struct{ uuid, event, requestID string }

// add notes an event until the returned function is called.
func (b *begunEvents) add(ctx context.Context, uuid, event string) (end func()) {
	e := begunEvent{uuid, event, reqctx.From(ctx).RequestID}
	b.events.Store(e, nil)
	return func() { b.events.Delete(e) }
}

func (b *begunEvents) has(uuid, event, requestID string) bool {
	_, ok := b.events.Load(begunEvent{uuid, event, requestID})
	return ok
}

// recentActions bounds how many of an instance's actions are looked at.
const recentActions = 10

// openEvents finds the events of an operation that an earlier process began here, the newest first: a second reboot may have waited
// for the first. What cannot be found stays open: history is no reason to fail.
func (m *Manager) openEvents(ctx context.Context, uuid, event string) []openEvent {
	found, err := m.findOpenEvents(ctx, uuid, event)
	if err != nil {
		reqctx.Log(ctx).WithError(err).WithField("event", event).Warning("action events of an interrupted operation not found; they stay without a result")
	}
	return found
}

func (m *Manager) findOpenEvents(ctx context.Context, uuid, event string) (found []openEvent, err error) {
	actions, err := m.Conductor.Actions(ctx, uuid, recentActions)
	if err != nil {
		return nil, err
	}
	taskless := event == "attach_interface" || event == "detach_interface" // the user may ask for anything meanwhile
	for _, action := range actions {
		if action.Action == "lock" || action.Action == "unlock" || taskless && action.Action != event {
			continue // which may come in the middle of it
		}
		events, err := m.Conductor.Events(ctx, action.ID)
		if err != nil {
			return found, err
		}
		if m.begun.has(uuid, event, action.RequestID) {
			continue
		}
		began, open := m.openHere(events, "compute_"+event)
		if !open {
			break // its message is still to come, or it ended; what was before it ended, too
		}
		found = append(found, openEvent{began: began, request: &reqctx.Request{
			RequestID: action.RequestID, UserID: action.UserID, ProjectID: action.ProjectID, IsAdmin: true, ReadDeleted: "no", Roles: []string{},
		}})
	}
	return found, nil
}

// openHere tells whether the event of that name has no result, and is this host's. Of several Nova ends the first
// (nova/db/main/api.py:action_event_finish); then the others are not asked for.
func (m *Manager) openHere(events []*object.InstanceActionEvent, name string) (began time.Time, open bool) {
	var first *object.InstanceActionEvent
	for _, e := range events {
		if e.Event == name && (first == nil || e.ID < first.ID) {
			first = e
		}
	}
	if first == nil || first.Host != m.opts.Host || first.Result != "" || !first.FinishTime.IsZero() {
		return time.Time{}, false
	}
	return first.StartTime.Time, true
}

// endOpenEvents gives the events of an interrupted operation its outcome.
func (m *Manager) endOpenEvents(ctx context.Context, uuid, event string, outcome error) {
	for _, e := range m.openEvents(ctx, uuid, event) {
		m.finishEvent(reqctx.With(ctx, e.request), uuid, event, outcome)
	}
}
