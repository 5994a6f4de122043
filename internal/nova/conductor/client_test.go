package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// message is one message that a Client sent.
type message struct {
	kind, method string
	target       rpc.Target
	args         json.RawMessage
	request      *reqctx.Request
}

// scripted is an RPC that answers each call with the next of its answers: a JSON text or an error.
type scripted struct {
	answers []any
	sent    []message
}

func (s *scripted) keep(ctx context.Context, kind string, t rpc.Target, method string, args map[string]any) error {
	b, err := json.Marshal(args)
	s.sent = append(s.sent, message{kind, method, t, b, reqctx.From(ctx)})
	return err
}

func (s *scripted) Call(ctx context.Context, t rpc.Target, method string, args map[string]any) (json.RawMessage, error) {
	if err := s.keep(ctx, "call", t, method, args); err != nil {
		return nil, err
	}
	if len(s.answers) == 0 {
		return nil, fmt.Errorf("no answer left for %s", method)
	}
	next := s.answers[0]
	s.answers = s.answers[1:]
	if err, ok := next.(error); ok {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	return json.RawMessage(next.(string)), nil
}

func (s *scripted) Cast(ctx context.Context, t rpc.Target, method string, args map[string]any) error {
	return s.keep(ctx, "cast", t, method, args)
}

func (s *scripted) Fanout(ctx context.Context, t rpc.Target, method string, args map[string]any) error {
	return s.keep(ctx, "fanout", t, method, args)
}

func client(t *testing.T, name string, answers ...any) (*Client, *scripted) {
	t.Helper()
	rel, err := release.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{answers: answers}
	return New(s, rel), s
}

func jsonDiff(t *testing.T, want string, got json.RawMessage) string {
	t.Helper()
	var a, b any
	if err := errors.Join(json.Unmarshal([]byte(want), &a), json.Unmarshal(got, &b)); err != nil {
		t.Fatal(err)
	}
	return cmp.Diff(a, b)
}

func TestWaitReady(t *testing.T) {
	t.Parallel()
	timeout := fmt.Errorf("no answer: %w", rpc.ErrTimeout)
	answers := make([]any, 0, 12)
	for range 11 {
		answers = append(answers, timeout)
	}
	c, s := client(t, "zed", append(answers, `{"service": "conductor", "arg": "1.21 GigaWatts"}`)...)
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, m := range s.sent {
		want := 10 * time.Second
		if i >= 10 {
			want = 60 * time.Second
		}
		if m.target.Timeout != want || m.target.Namespace != "baseapi" || m.method != "ping" {
			t.Errorf("ping %d: %s to %+v", i, m.method, m.target)
		}
	}
	if diff := jsonDiff(t, `{"arg": "1.21 GigaWatts"}`, s.sent[0].args); diff != "" {
		t.Error(diff)
	}
	c, s = client(t, "zed", errors.New("access refused"))
	if err := c.WaitReady(t.Context()); err == nil || len(s.sent) != 1 {
		t.Errorf("another error is repeated: %v, %d calls", err, len(s.sent))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, _ = client(t, "zed", timeout, timeout)
	if err := c.WaitReady(ctx); !errors.Is(err, rpc.ErrTimeout) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestDetectRelease(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{"64": "zed", "66": "2023.1", "74": "2026.2"} {
		c, s := client(t, "zed", answer)
		r, err := c.DetectRelease(t.Context())
		if err != nil || r.Name != want {
			t.Errorf("%s: got %s, %v", answer, r, err)
		}
		if !strings.Contains(string(s.sent[0].args), `"args":[["nova-conductor","nova-scheduler"]]`) {
			t.Errorf("asked %s", s.sent[0].args)
		}
	}
	for _, answer := range []any{"0", "61", "999", "null_", `"64"`, errors.New("x")} {
		c, _ := client(t, "zed", answer)
		if r, err := c.DetectRelease(t.Context()); err == nil {
			t.Errorf("%v: got %s", answer, r)
		}
	}
}

const emptyUpdates = `[{"obj_what_changed": []}, null]`

// Only id, uuid and the changed fields are sent, and the row that comes back is stored.
func TestSaveInstance(t *testing.T) {
	t.Parallel()
	c, s := client(t, "zed", `[{"updated_at": "2026-01-02T03:04:05Z", "hostname": "h", "obj_what_changed": ["ec2_ids"]}, null]`)
	inst := &object.Instance{ID: 7, UUID: "u", TaskState: "spawning", DisplayName: "not sent"}
	changes := map[string]any{"task_state": nil, "vm_state": "active", "power_state": 1, "compute_id": 3, "node": "n"}
	if err := c.SaveInstance(t.Context(), inst, changes, ExpectTask("spawning", ""), ExpectVM("building")); err != nil {
		t.Fatal(err)
	}
	want := `{"objinst": {"nova_object.name": "Instance", "nova_object.namespace": "nova", "nova_object.version": "2.7",
	  "nova_object.data": {"id": 7, "uuid": "u", "task_state": null, "vm_state": "active", "power_state": 1, "node": "n"},
	  "nova_object.changes": ["node", "power_state", "task_state", "vm_state"]},
	 "objmethod": "save", "args": [], "kwargs": {"expected_task_state": ["spawning", null], "expected_vm_state": ["building"]}}`
	if diff := jsonDiff(t, want, s.sent[0].args); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if inst.TaskState != "" || inst.VMState != "active" || inst.PowerState != 1 || inst.Hostname != "h" || inst.Changes != nil || inst.IsSet("obj_what_changed") {
		t.Errorf("after the save: %q %q %d %q %v", inst.TaskState, inst.VMState, inst.PowerState, inst.Hostname, inst.Changes)
	}
	if changes["compute_id"] != 3 {
		t.Error("the caller's map was changed")
	}
}

func TestSaveInstanceFails(t *testing.T) {
	t.Parallel()
	c, _ := client(t, "zed", &rpc.Failure{Class: "UnexpectedDeletingTaskStateError", Module: "nova.exception"}, `7`, `[7, null]`, `[{"id": "x"}, null]`)
	inst := &object.Instance{ID: 7, UUID: "u", TaskState: "spawning"}
	for i := range 4 {
		err := c.SaveInstance(t.Context(), inst, map[string]any{"task_state": nil})
		if err == nil {
			t.Fatalf("call %d: no error", i)
		}
		if i == 0 && !exception.Is(err, "UnexpectedTaskStateError") {
			t.Errorf("got %v", err)
		}
		if inst.TaskState != "spawning" {
			t.Errorf("call %d changed the object", i)
		}
	}
	if err := c.SaveInstance(t.Context(), inst, map[string]any{"task_state": func() {}}); err == nil {
		t.Error("a value that cannot be encoded was sent")
	}
}

func TestComputeID(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		release string
		changes map[string]any
		want    string // changes that are sent; "" is an error
	}{
		"zed drops it":                  {"zed", map[string]any{"node": "n", "compute_id": 1}, `{"node": "n"}`},
		"sent":                          {"2024.1", map[string]any{"node": "n", "compute_id": 1}, `{"node": "n", "compute_id": 1}`},
		"goes with a null node":         {"2024.1", map[string]any{"node": nil}, `{"node": null, "compute_id": null}`},
		"missing":                       {"2024.1", map[string]any{"node": "n"}, ""},
		"not needed for another change": {"2024.1", map[string]any{"host": "h"}, `{"host": "h"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, s := client(t, c.release, emptyUpdates)
			err := client.SaveInstance(t.Context(), &object.Instance{}, c.changes)
			if c.want == "" {
				if err == nil || len(s.sent) > 0 {
					t.Errorf("error %v, %d calls", err, len(s.sent))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var sent struct {
				ObjInst *object.Generic `json:"objinst"`
			}
			if err := json.Unmarshal(s.sent[0].args, &sent); err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(sent.ObjInst.Data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := jsonDiff(t, c.want, b); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	client, s := client(t, "2025.1", emptyUpdates)
	m := &object.Migration{UUID: "m"}
	if err := client.SaveMigration(t.Context(), m, map[string]any{"dest_node": "n"}); err == nil {
		t.Error("dest_node was sent without dest_compute_id")
	}
	if err := client.SaveMigration(t.Context(), m, map[string]any{"dest_node": "n", "dest_compute_id": 2}); err != nil {
		t.Error(err)
	}
	if len(s.sent) != 1 || m.DestComputeID == nil || *m.DestComputeID != 2 {
		t.Errorf("%d calls, dest_compute_id %v", len(s.sent), m.DestComputeID)
	}
}

func TestCreateService(t *testing.T) {
	t.Parallel()
	c, s := client(t, "zed", `[{"id": 5, "uuid": "s", "disabled": false, "obj_what_changed": []}, null]`)
	service := &object.Service{Host: "h", Binary: "nova-compute", Topic: "compute", ServiceVersion: 64}
	if err := c.CreateService(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	want := `{"objinst": {"nova_object.name": "Service", "nova_object.namespace": "nova", "nova_object.version": "1.22",
	  "nova_object.data": {"host": "h", "binary": "nova-compute", "topic": "compute", "report_count": 0, "version": 64},
	  "nova_object.changes": ["binary", "host", "report_count", "topic", "version"]},
	 "objmethod": "create", "args": [], "kwargs": {}}`
	if diff := jsonDiff(t, want, s.sent[0].args); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if service.ID != 5 || service.UUID != "s" || service.ServiceVersion != 64 {
		t.Errorf("after the create: %d %s %d", service.ID, service.UUID, service.ServiceVersion)
	}
}

func TestReportService(t *testing.T) {
	t.Parallel()
	c, s := client(t, "zed", `[{"last_seen_up": "2026-01-02T03:04:05Z", "obj_what_changed": []}, null]`)
	service := &object.Service{ID: 5, Host: "h", ReportCount: 18}
	if err := c.ReportService(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	want := `{"objinst": {"nova_object.name": "Service", "nova_object.namespace": "nova", "nova_object.version": "1.22",
	  "nova_object.data": {"id": 5, "report_count": 18}, "nova_object.changes": ["report_count"]},
	 "objmethod": "save", "args": [], "kwargs": {}}`
	if diff := jsonDiff(t, want, s.sent[0].args); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNotFoundIsNil(t *testing.T) {
	t.Parallel()
	missing := &rpc.Failure{Class: "ComputeHostNotFound", Module: "nova.exception"}
	c, _ := client(t, "2024.1", missing, missing, missing, "null", missing)
	if n, err := c.ComputeNodeByUUID(t.Context(), "x"); n != nil || err != nil {
		t.Errorf("got %v, %v", n, err)
	}
	if n, err := c.ComputeNodeByHostAndNodename(t.Context(), "h", "n"); n != nil || err != nil {
		t.Errorf("got %v, %v", n, err)
	}
	if n, err := c.ComputeNodesByHost(t.Context(), "h"); len(n) != 0 || err != nil {
		t.Errorf("got %v, %v", n, err)
	}
	if s, err := c.ServiceByHost(t.Context(), "h", "nova-compute"); s != nil || err != nil {
		t.Errorf("got %v, %v", s, err)
	}
	if _, err := c.ServiceByComputeHost(t.Context(), "h"); !exception.Is(err, "NotFound") {
		t.Errorf("got %v", err)
	}
}

// Nothing that is set is asked for; the fields with loaders of their own are null when
// the row has none.
func TestLoadInstance(t *testing.T) {
	t.Parallel()
	instance := func(data string) string {
		return `{"nova_object.name": "Instance", "nova_object.namespace": "nova", "nova_object.version": "2.8", "nova_object.data": ` + data + `}`
	}
	c, s := client(t, "zed", &rpc.Failure{Class: "NumaTopologyNotFound", Module: "nova.exception"},
		instance(`{"uuid": "u", "host": "changed meanwhile", "flavor": null, "old_flavor": null, "metadata": {"a": "b"}}`))
	inst := &object.Instance{Header: object.New("Instance", "2.7"), UUID: "u", Host: "h"}
	if err := object.Mark(inst, "uuid", "host", "info_cache"); err != nil {
		t.Fatal(err)
	}
	if err := c.LoadInstance(t.Context(), inst, "info_cache", "host"); err != nil || len(s.sent) > 0 {
		t.Errorf("%v, %d calls", err, len(s.sent))
	}
	if err := c.LoadInstance(t.Context(), inst, "flavor", "info_cache", "numa_topology", "metadata"); err != nil {
		t.Fatal(err)
	}
	if len(s.sent) != 2 || !strings.Contains(string(s.sent[1].args), `"kwargs":{"expected_attrs":["flavor","metadata"],"uuid":"u"}`) {
		t.Errorf("%d calls, the last %s", len(s.sent), s.sent[1].args)
	}
	if s.sent[0].request.ReadDeleted != "yes" {
		t.Error("deleted rows are not read")
	}
	if inst.Host != "h" || inst.Metadata["a"] != "b" || !inst.IsNull("numa_topology") || !inst.IsSet("old_flavor") {
		t.Errorf("after the load: %q %v %s %v", inst.Host, inst.Metadata, inst.Data["numa_topology"], inst.IsSet("old_flavor"))
	}
	c, _ = client(t, "zed", instance(`{"uuid": "u"}`))
	if err := c.LoadInstance(t.Context(), inst, "keypairs"); err != nil || inst.Keypairs == nil || len(inst.Keypairs.Objects) != 0 {
		t.Errorf("a server without keys: %v, %v", err, inst.Keypairs)
	}
	c, _ = client(t, "zed", instance(`{"uuid": "u"}`))
	if err := c.LoadInstance(t.Context(), inst, "ec2_ids"); err == nil {
		t.Error("an attribute that did not come is no error")
	}
}

func TestDeleteVIF(t *testing.T) {
	t.Parallel()
	c, s := client(t, "zed", `{"nova_object.name": "VirtualInterface", "nova_object.namespace": "nova", "nova_object.version": "1.3",
	  "nova_object.data": {"id": 4, "uuid": "p", "instance_uuid": "u", "network_id": null}}`, emptyUpdates, "null",
		&rpc.Failure{Class: "NotFound", Module: "nova.exception"})
	for range 3 {
		if err := c.DeleteVIF(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.sent) != 4 || !strings.Contains(string(s.sent[1].args), `"objmethod":"destroy"`) {
		t.Errorf("%d calls", len(s.sent))
	}
}

func TestCasts(t *testing.T) {
	t.Parallel()
	c, s := client(t, "2026.1")
	ctx := reqctx.With(t.Context(), &reqctx.Request{RequestID: "r", ProjectID: "p", Roles: []string{"member"}})
	inst := &object.Instance{Header: object.New("Instance", "2.8"), UUID: "u"}
	for _, err := range []error{
		c.BuildInstances(ctx, map[string]any{"instances": []any{}}),
		c.MigrateServer(ctx, map[string]any{}),
		c.CastCompute(ctx, "h", true, "finish_resize", map[string]any{}),
		c.CastCompute(ctx, "h", false, "prep_resize", map[string]any{}),
		c.UpdateInstanceInfo(ctx, "h", []*object.Instance{inst}),
		c.UpdateInstanceInfo(ctx, "h", nil),
		c.DeleteInstanceInfo(ctx, "h", "u"),
		c.SyncInstanceInfo(ctx, "h", nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	type line struct {
		Kind, Method string
		Target       rpc.Target
		Admin        bool
	}
	var got []line
	for _, m := range s.sent {
		got = append(got, line{m.kind, m.method, m.target, m.request.IsAdmin})
	}
	want := []line{
		{"cast", "build_instances", rpc.Target{Topic: "conductor", Namespace: "compute_task", Version: "1.19"}, false},
		{"cast", "migrate_server", rpc.Target{Topic: "conductor", Namespace: "compute_task", Version: "1.20"}, false},
		{"cast", "finish_resize", rpc.Target{Topic: "compute-alt", Server: "h", Version: "6.0"}, false},
		{"cast", "prep_resize", rpc.Target{Topic: "compute", Server: "h", Version: "6.0"}, false},
		{"fanout", "update_instance_info", rpc.Target{Topic: "scheduler", Version: "4.2"}, true},
		{"fanout", "update_instance_info", rpc.Target{Topic: "scheduler", Version: "4.2"}, true},
		{"fanout", "delete_instance_info", rpc.Target{Topic: "scheduler", Version: "4.2"}, true},
		{"fanout", "sync_instance_info", rpc.Target{Topic: "scheduler", Version: "4.2"}, true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantList := `{"host_name": "h", "instance_info": {"nova_object.name": "InstanceList", "nova_object.namespace": "nova", "nova_object.version": "2.6",
	  "nova_object.data": {"objects": []}, "nova_object.changes": ["objects"]}}`
	if diff := jsonDiff(t, wantList, s.sent[5].args); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := jsonDiff(t, `{"host_name": "h", "instance_uuids": []}`, s.sent[7].args); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The manifest of every class that is asked for names a version for each class below it.
func TestManifests(t *testing.T) {
	t.Parallel()
	for _, r := range release.All() {
		for class := range children {
			for name, version := range manifest(r, class) {
				if version == "" {
					t.Errorf("%s: manifest of %s has no version of %s", r, class, name)
				}
			}
		}
	}
}

// The history of an instance, as nova-api asks the database for it.
func TestActions(t *testing.T) {
	t.Parallel()
	envelope := func(class, version, data string) string {
		return `{"nova_object.name": "` + class + `", "nova_object.namespace": "nova", "nova_object.version": "` + version + `", "nova_object.data": ` + data + `}`
	}
	c, s := client(t, "zed",
		envelope("InstanceActionList", "1.1", `{"objects": [`+envelope("InstanceAction", "1.2",
			`{"id": 7, "action": "stop", "request_id": "req-1", "user_id": null, "project_id": "p", "finish_time": null}`)+`]}`),
		envelope("InstanceActionEventList", "1.1", `{"objects": [`+envelope("InstanceActionEvent", "1.4",
			`{"id": 8, "event": "compute_stop_instance", "host": "h", "result": null, "start_time": "2026-11-22T10:00:00Z", "finish_time": null}`)+`]}`))
	actions, err := c.Actions(t.Context(), "u", 5)
	if err != nil {
		t.Fatal(err)
	}
	events, err := c.Events(t.Context(), actions[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	a, e := actions[0], events[0]
	got := fmt.Sprint(a.ID, a.Action, a.RequestID, a.UserID, a.ProjectID, e.ID, e.Event, e.Host, e.Result, e.StartTime.UTC(), e.FinishTime.IsZero())
	if want := fmt.Sprint(7, "stop", "req-1", "", "p", 8, "compute_stop_instance", "h", "", time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), true); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for i, want := range []string{
		`{"objname": "InstanceActionList", "objmethod": "get_by_instance_uuid", "object_versions": {"InstanceActionList": "1.1", "InstanceAction": "1.2"},
			"args": ["u"], "kwargs": {"limit": 5}}`,
		`{"objname": "InstanceActionEventList", "objmethod": "get_by_action", "object_versions": {"InstanceActionEventList": "1.1", "InstanceActionEvent": "1.4"},
			"args": [7], "kwargs": {}}`,
	} {
		if diff := jsonDiff(t, want, s.sent[i].args); diff != "" {
			t.Errorf("call %d (-want +got):\n%s", i, diff)
		}
	}
}
