package notify

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// sent is one notification that an Emitter passed on.
type sent struct {
	topics                           []string
	priority, publisherID, eventType string
	payload                          json.RawMessage
}

// recorder keeps what is sent.
type recorder struct{ sent []sent }

func (r *recorder) Enabled() bool { return true }

func (r *recorder) Notify(_ context.Context, topics []string, priority, publisherID, eventType string, payload any) error {
	b, err := json.Marshal(payload)
	if err != nil {
		return err
	}
	r.sent = append(r.sent, sent{topics, priority, publisherID, eventType, b})
	return nil
}

// history follows what each server looked like on the compute that speaks of it: from
// the instance of the request, lazy loads, saves and their replies.
type history struct {
	instances map[string]map[string]json.RawMessage // uuid → fields
	requests  map[string]*capture.Message           // _msg_id → request
}

func newHistory() *history {
	return &history{instances: map[string]map[string]json.RawMessage{}, requests: map[string]*capture.Message{}}
}

func (h *history) merge(uuid string, fields map[string]json.RawMessage) {
	if h.instances[uuid] == nil {
		h.instances[uuid] = map[string]json.RawMessage{}
	}
	maps.Copy(h.instances[uuid], fields)
}

func generic(t *testing.T, raw json.RawMessage) *object.Generic {
	t.Helper()
	var g object.Generic
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return &g
}

func str(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

func (h *history) follow(t *testing.T, m *capture.Message) {
	t.Helper()
	switch {
	case strings.HasPrefix(m.RoutingKey, "compute.") && m.Args["instance"] != nil:
		g := generic(t, m.Args["instance"])
		uuid := str(g.Data["uuid"])
		h.instances[uuid] = nil // the request's object is all that the method knows
		h.merge(uuid, g.Data)
	case m.Method == "object_action" || m.Method == "object_class_action_versions":
		h.requests[m.MsgID] = m
		if raw := m.Args["objinst"]; raw != nil {
			g := generic(t, raw)
			switch g.Class {
			case "Instance":
				h.merge(str(g.Data["uuid"]), g.Data)
			case "InstanceInfoCache":
				if str(m.Args["objmethod"]) == "save" {
					g.Changes = nil
					b, err := json.Marshal(g)
					if err != nil {
						t.Fatal(err)
					}
					h.merge(str(g.Data["instance_uuid"]), map[string]json.RawMessage{"info_cache": b})
				}
			}
		}
	case m.MsgID != "" && h.requests[m.MsgID] != nil && m.Failure == nil:
		h.reply(t, h.requests[m.MsgID], m)
	}
}

func (h *history) reply(t *testing.T, request, m *capture.Message) {
	t.Helper()
	if raw := request.Args["objinst"]; raw != nil {
		g := generic(t, raw)
		var pair []json.RawMessage
		var updates map[string]json.RawMessage
		if g.Class != "Instance" || json.Unmarshal(m.Result, &pair) != nil || json.Unmarshal(pair[0], &updates) != nil {
			return
		}
		delete(updates, "obj_what_changed")
		h.merge(str(g.Data["uuid"]), updates)
		return
	}
	if str(request.Args["objname"]) != "Instance" || str(request.Args["objmethod"]) != "get_by_uuid" {
		return
	}
	g := generic(t, m.Result)
	var lazy struct {
		UUID  string   `json:"uuid"` // a lazy load names it and takes only what it asked for
		Attrs []string `json:"expected_attrs"`
	}
	if err := json.Unmarshal(request.Args["kwargs"], &lazy); err != nil {
		t.Fatal(err)
	}
	if lazy.UUID != "" {
		maps.DeleteFunc(g.Data, func(name string, _ json.RawMessage) bool { return name != "uuid" && !slices.Contains(lazy.Attrs, name) })
	}
	h.merge(str(g.Data["uuid"]), g.Data)
}

func (h *history) instance(t *testing.T, uuid string) *object.Instance {
	t.Helper()
	g := &object.Generic{Header: object.New("Instance", "2.7")}
	g.Data = h.instances[uuid]
	b, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var i object.Instance
	if err := json.Unmarshal(b, &i); err != nil {
		t.Fatal(err)
	}
	return &i
}

// legacyActions gives the action of a legacy suffix that is not the action itself.
var legacyActions = map[string]string{
	"resize.prep": "resize_prep", "finish_resize": "resize_finish", "resize.confirm": "resize_confirm", "resize.revert": "resize_revert",
}

// eventOf reconstructs the event of a captured notification; what only the caller knows
// comes from the notification itself.
func eventOf(t *testing.T, m *capture.Message, h *history) (Event, bool) {
	t.Helper()
	var ev Event
	if suffix, ok := strings.CutPrefix(m.EventType, "compute.instance."); ok {
		split(&ev, suffix)
		if a, ok := legacyActions[ev.Action]; ok {
			ev.Action = a
		}
		ev.LegacyOnly = true
		var p map[string]json.RawMessage
		if err := json.Unmarshal(m.Payload, &p); err != nil {
			t.Fatal(err)
		}
		ev.Instance = h.instance(t, str(p["instance_id"]))
		if ev.Action == "reboot" && ev.Phase == "start" { // set in the object, saved after the notification
			ev.Instance.TaskState = str(p["state_description"])
		}
		ev.ImageName, ev.AuditBegin, ev.AuditEnd = str(p["image_name"]), str(p["audit_period_beginning"]), str(p["audit_period_ending"])
		ev.Extra = map[string]any{}
		for _, k := range []string{"message", "rescue_image_name", "new_instance_type", "new_instance_type_id"} {
			if v, ok := p[k]; ok {
				ev.Extra[k] = v
			}
		}
		if _, ok := p["fixed_ips"]; ok {
			ev.NetworkInfo = ev.Instance.NetworkInfo()
			if ev.NetworkInfo == nil {
				ev.NetworkInfo = object.NetworkInfo{}
			}
		}
		return ev, true
	}
	suffix, ok := strings.CutPrefix(m.EventType, "instance.")
	if !ok {
		return ev, false
	}
	split(&ev, suffix)
	ev.VersionedOnly = true
	p := generic(t, m.Payload).Data
	ev.Instance = h.instance(t, str(p["uuid"]))
	if ev.Action == "reboot" && ev.Phase == "start" {
		ev.Instance.TaskState = str(p["task_state"])
	}
	if string(p["block_devices"]) != "null" {
		ev.BDMs = []*object.BlockDeviceMapping{{}} // an image's disk: no volume
	}
	ev.SnapshotImageID, ev.RescueImageRef = str(p["snapshot_image_id"]), str(p["rescue_image_ref"])
	if raw, ok := p["audit_period"]; ok {
		period := generic(t, raw).Data
		plain := strings.NewReplacer("T", " ", "Z", "")
		ev.AuditBegin, ev.AuditEnd = plain.Replace(str(period["audit_period_beginning"])), plain.Replace(str(period["audit_period_ending"]))
	}
	if raw, ok := p["new_flavor"]; ok {
		g := generic(t, raw)
		g.Class, g.Version = "Flavor", "1.2"
		ev.NewFlavor = &object.Flavor{}
		b, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, ev.NewFlavor); err != nil {
			t.Fatal(err)
		}
	}
	return ev, true
}

func split(ev *Event, suffix string) {
	ev.Action = suffix
	for _, phase := range []string{"start", "end", "error"} {
		if a, ok := strings.CutSuffix(suffix, "."+phase); ok {
			ev.Action, ev.Phase = a, phase
		}
	}
}

// Each notification of a real nova-compute about a server is built again from what
// nova-compute knew of the server.
func TestCapturedNotifications(t *testing.T) {
	t.Parallel()
	for name, directory := range map[string]string{"zed": "zed", "2025.1": "epoxy"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rel, err := release.ByName(name)
			if err != nil {
				t.Fatal(err)
			}
			messages := capture.Load(t, directory)
			seen := map[string]int{}
			h, file := newHistory(), ""
			for i := range messages {
				m := &messages[i]
				if m.File != file {
					h, file = newHistory(), m.File
				}
				h.follow(t, m)
				host, versioned := strings.CutPrefix(m.PublisherID, "nova-compute:")
				if !versioned {
					host, _ = strings.CutPrefix(m.PublisherID, "compute.")
				}
				if !strings.HasPrefix(host, "peer") || strings.Contains(m.EventType, "live_migration") {
					continue
				}
				ev, ok := eventOf(t, m, h)
				if !ok {
					continue
				}
				if ev.Instance.Flavor == nil {
					continue // the request came before this file
				}
				seen[m.EventType]++
				compare(t, rel, host, m, ev)
			}
			t.Logf("%d types: %v", len(seen), slices.Sorted(maps.Keys(seen)))
			if name == "zed" && len(seen) < 80 {
				t.Errorf("only %d types were seen", len(seen))
			}
		})
	}
}

func compare(t *testing.T, rel release.Release, host string, m *capture.Message, ev Event) {
	t.Helper()
	r := &recorder{}
	e := New(r, Options{Host: host, Format: FormatBoth, Release: rel, GlanceEndpoint: "http://127.0.0.1:9292"})
	e.Instance(reqctx.With(t.Context(), reqctx.FromMap(m.Context(t))), ev)
	if len(r.sent) != 1 {
		t.Fatalf("%s line %d: %s: %d notifications", m.File, m.Line, m.EventType, len(r.sent))
	}
	got := r.sent[0]
	if got.eventType != m.EventType || got.priority != m.Priority || got.publisherID != m.PublisherID {
		t.Errorf("%s line %d: got %s %s %s, want %s %s %s", m.File, m.Line, got.eventType, got.priority, got.publisherID, m.EventType, m.Priority, m.PublisherID)
	}
	diff := cmp.Diff(payloadOf(t, m.Payload), payloadOf(t, got.payload))
	if diff != "" {
		t.Errorf("%s line %d: %s (-want +got):\n%s", m.File, m.Line, m.EventType, diff)
	}
}

func payloadOf(t *testing.T, raw json.RawMessage) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if p, ok := v.(map[string]any); ok && p["nova_object.name"] == nil {
		// A legacy payload of nova-compute has microseconds in times that were just set;
		// a save carries seconds.
		for _, k := range []string{"launched_at", "terminated_at"} {
			if at, ok := p[k].(string); ok {
				p[k], _, _ = strings.Cut(at, ".")
			}
		}
	}
	return v
}
