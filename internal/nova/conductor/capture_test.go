package conductor

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// request is the arguments of object_class_action_versions or object_action.
type request struct {
	ObjName  string            `json:"objname,omitempty"`
	Method   string            `json:"objmethod"`
	Versions map[string]string `json:"object_versions,omitempty"`
	ObjInst  *object.Generic   `json:"objinst,omitempty"`
	Args     []json.RawMessage `json:"args"`
	Kwargs   map[string]any    `json:"kwargs"`
}

func (r *request) key() string {
	if r.ObjInst != nil {
		return r.ObjInst.Class + "." + r.Method
	}
	return r.ObjName + "." + r.Method
}

func (r *request) text(t *testing.T, i int) string {
	t.Helper()
	var s string
	if err := json.Unmarshal(r.Args[i], &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func decodeRequest(t *testing.T, args any) *request {
	t.Helper()
	b, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	var r request
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// played is an RPC that answers with a captured reply and keeps what was sent.
type played struct {
	reply       *capture.Message
	method      string
	target      rpc.Target
	args        json.RawMessage // as they were at the time of the call
	readDeleted string
}

func (p *played) keep(t rpc.Target, method string, args map[string]any) (err error) {
	p.target, p.method = t, method
	p.args, err = json.Marshal(args)
	return err
}

func (p *played) Call(ctx context.Context, t rpc.Target, method string, args map[string]any) (json.RawMessage, error) {
	if err := p.keep(t, method, args); err != nil {
		return nil, err
	}
	p.readDeleted = reqctx.From(ctx).ReadDeleted
	if p.reply.Failure != nil {
		var f struct{ Class, Module, Message string }
		if err := json.Unmarshal([]byte(*p.reply.Failure), &f); err != nil {
			return nil, err
		}
		return nil, &rpc.Failure{Class: f.Class, Module: f.Module, Message: f.Message}
	}
	return p.reply.Result, nil
}

func (p *played) Cast(_ context.Context, t rpc.Target, method string, args map[string]any) error {
	return p.keep(t, method, args)
}

func (p *played) Fanout(ctx context.Context, t rpc.Target, method string, args map[string]any) error {
	return p.Cast(ctx, t, method, args)
}

// load decodes the object that a captured action was called on, without its changes.
func load[T any](t *testing.T, r *request) *T {
	t.Helper()
	r.ObjInst.Changes = nil
	b, err := json.Marshal(r.ObjInst)
	if err != nil {
		t.Fatal(err)
	}
	var o T
	if err := json.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	return &o
}

// changesOf gives the fields that a captured save changed.
func changesOf(t *testing.T, r *request) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, name := range r.ObjInst.Changes {
		out[name] = r.ObjInst.Data[name]
	}
	return out
}

func attrs(r *request) []string {
	var out []string
	list, _ := r.Kwargs["expected_attrs"].([]any) // absent in one request: the default, which we never use
	for _, a := range list {
		out = append(out, a.(string))
	}
	return out
}

func pointer(v any) *string {
	if s, ok := v.(string); ok {
		return &s
	}
	return nil
}

// calls repeats a captured request of nova-compute by the client's own method.
var calls = map[string]func(ctx context.Context, t *testing.T, c *Client, r *request) error{
	"BlockDeviceMapping.save": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		changes := changesOf(t, r)
		return c.SaveBDM(ctx, load[object.BlockDeviceMapping](t, r), changes)
	},
	"BlockDeviceMappingList.get_by_instance_uuid": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.BDMs(ctx, r.text(t, 0))
		return err
	},
	"ComputeNode.get_by_host_and_nodename": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.ComputeNodeByHostAndNodename(ctx, r.text(t, 0), r.text(t, 1))
		return err
	},
	"ComputeNode.get_by_uuid": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.ComputeNodeByUUID(ctx, r.text(t, 0))
		return err
	},
	"ComputeNode.save": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		changes := changesOf(t, r)
		return c.SaveComputeNode(ctx, load[object.ComputeNode](t, r), changes)
	},
	"ComputeNodeList.get_all_by_host": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.ComputeNodesByHost(ctx, r.text(t, 0))
		return err
	},
	"ComputeNodeList.get_all_by_uuids": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		var uuids []string
		if err := json.Unmarshal(r.Args[0], &uuids); err != nil {
			t.Fatal(err)
		}
		_, err := c.ComputeNodesByUUID(ctx, uuids...)
		return err
	},
	"ConsoleAuthToken.authorize": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		token, err := c.AuthorizeConsoleToken(ctx, load[object.ConsoleAuthToken](t, r), 600*time.Second)
		if err == nil && token != "REDACTED" {
			err = fmt.Errorf("token %q", token)
		}
		return err
	},
	"ConsoleAuthToken.clean_console_auths_for_instance": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		return c.CleanConsoleTokens(ctx, r.text(t, 0))
	},
	"Instance.destroy": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		inst := load[object.Instance](t, r)
		if err := c.DestroyInstance(ctx, inst); err != nil {
			return err
		}
		if !inst.Deleted || inst.DeletedAt.IsZero() {
			return fmt.Errorf("deleted %v at %v", inst.Deleted, inst.DeletedAt)
		}
		return nil
	},
	"Instance.drop_migration_context": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		return c.DropMigrationContext(ctx, load[object.Instance](t, r))
	},
	"Instance.get_by_uuid": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		if len(r.Args) > 0 {
			_, err := c.InstanceByUUID(ctx, r.text(t, 0), attrs(r)...)
			return err
		}
		inst := &object.Instance{UUID: r.Kwargs["uuid"].(string)}
		if err := c.LoadInstance(ctx, inst, attrs(r)...); err != nil {
			return err
		}
		for _, a := range attrs(r) {
			if !inst.IsSet(a) {
				return fmt.Errorf("%s was not loaded", a)
			}
		}
		return nil
	},
	"Instance.save": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		changes := changesOf(t, r)
		var expect Expect
		switch v := r.Kwargs["expected_task_state"].(type) {
		case string:
			expect.TaskState = []*string{&v}
		case []any:
			for _, s := range v {
				expect.TaskState = append(expect.TaskState, pointer(s))
			}
		}
		inst := load[object.Instance](t, r)
		if err := c.SaveInstance(ctx, inst, changes, expect); err != nil {
			return err
		}
		if len(inst.Changes) > 0 {
			return fmt.Errorf("changes %v are left", inst.Changes)
		}
		return nil
	},
	"InstanceActionEvent.event_finish_with_failure": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		return c.FinishEvent(ctx, r.text(t, 0), r.text(t, 1), pointer(r.Kwargs["exc_val"]), pointer(r.Kwargs["exc_tb"]))
	},
	"InstanceActionEvent.event_start": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		return c.StartEvent(ctx, r.text(t, 0), r.text(t, 1), r.Kwargs["host"].(string))
	},
	"InstanceInfoCache.save": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		cache := load[object.InstanceInfoCache](t, r)
		return c.SaveInfoCache(ctx, cache.InstanceUUID, cache.NetworkInfo)
	},
	"InstanceList.get_by_host": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.InstancesByHost(ctx, r.text(t, 0), attrs(r)...)
		return err
	},
	"InstanceList.get_by_host_and_node": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.InstancesByHostAndNode(ctx, r.text(t, 0), r.text(t, 1), attrs(r)...)
		return err
	},
	"InstanceNUMATopology.get_by_instance_uuid": loadOne("numa_topology"),
	"InstancePCIRequests.get_by_instance_uuid":  loadOne("pci_requests"),
	"Migration.save": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		changes := changesOf(t, r)
		return c.SaveMigration(ctx, load[object.Migration](t, r), changes)
	},
	"MigrationContext.get_by_instance_uuid": loadOne("migration_context"),
	"MigrationList.get_by_filters": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		var filters map[string]any
		if err := json.Unmarshal(r.Args[0], &filters); err != nil {
			t.Fatal(err)
		}
		_, err := c.MigrationsByFilters(ctx, filters)
		return err
	},
	"MigrationList.get_in_progress_and_error": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.MigrationsInProgressAndError(ctx, r.text(t, 0), r.text(t, 1))
		return err
	},
	"PciDeviceList.get_by_compute_node": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		var id int
		if err := json.Unmarshal(r.Args[0], &id); err != nil {
			t.Fatal(err)
		}
		_, err := c.PCIDevices(ctx, id)
		return err
	},
	"PciDeviceList.get_by_instance_uuid": loadOne("pci_devices"),
	"ResourceList.get_by_instance_uuid":  loadOne("resources"),
	"Service.get_by_compute_host": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.ServiceByComputeHost(ctx, r.text(t, 0))
		return err
	},
	"Service.get_by_host_and_binary": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.ServiceByHost(ctx, r.text(t, 0), r.text(t, 1))
		return err
	},
	"Service.get_minimum_version": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.MinimumServiceVersion(ctx, r.text(t, 0))
		return err
	},
	"Service.save": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		s := load[object.Service](t, r)
		before := s.LastSeenUp
		if err := c.ReportService(ctx, s); err != nil {
			return err
		}
		if !s.LastSeenUp.After(before.Time) {
			return fmt.Errorf("last seen %v after %v", s.LastSeenUp, before)
		}
		return nil
	},
	"TaskLog.get": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		var times [2]time.Time
		for i := range times {
			var err error
			if times[i], err = time.Parse(rawTimeLayout, r.text(t, i+1)); err != nil {
				t.Fatal(err)
			}
		}
		_, err := c.TaskLog(ctx, r.text(t, 0), times[0], times[1], r.text(t, 3))
		return err
	},
	"VirtualInterface.create": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		v := load[object.VirtualInterface](t, r)
		mac := v.Address[:17] // without "/<port id>"
		return c.CreateVIF(ctx, v.UUID, mac, v.InstanceUUID, nil)
	},
	"VirtualInterface.delete_by_instance_uuid": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		return c.DeleteVIFs(ctx, r.text(t, 0))
	},
	"VirtualInterfaceList.get_by_instance_uuid": func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		_, err := c.VIFs(ctx, r.text(t, 0))
		return err
	},
}

func loadOne(attr string) func(ctx context.Context, t *testing.T, c *Client, r *request) error {
	return func(ctx context.Context, t *testing.T, c *Client, r *request) error {
		inst := &object.Instance{UUID: r.text(t, 0)}
		if err := c.LoadInstance(ctx, inst, attr); err != nil {
			return err
		}
		if !inst.IsSet(attr) {
			return fmt.Errorf("%s was not loaded", attr)
		}
		return nil
	}
}

// notRepeated are requests of nova-compute that the agent does not make, or makes in another form.
var notRepeated = map[string]string{
	"CellMappingList.get_all":                           "a compute without the API database asks Service.get_minimum_version",
	"ComputeNode.get_first_node_by_host_for_old_compat": "live migration",
	"InstanceGroup.get_by_instance_uuid":                "live migration",
	"InstanceInfoCache.refresh":                         "RefreshInfoCache reads by instance UUID",
	"ShareMappingList.get_by_instance_uuid":             "shares are refused",
	"VirtualInterface.destroy":                          "DeleteVIF, after get_by_uuid",
	"VirtualInterface.get_by_uuid":                      "DeleteVIF makes two calls: see TestDeleteVIF",
}

// unlike are differences from nova-compute that are meant: keyword arguments that only
// choose a database replica, an explicit empty list instead of the default, and nothing
// instead of null for no check.
func unlike(kwargs map[string]any) map[string]any {
	out := maps.Clone(kwargs)
	delete(out, "use_slave")
	if l, ok := out["expected_attrs"].([]any); ok && len(l) == 0 {
		delete(out, "expected_attrs")
	}
	if v, ok := out["expected_task_state"]; ok {
		switch v := v.(type) {
		case nil:
			delete(out, "expected_task_state")
		case string:
			out["expected_task_state"] = []any{v}
		}
	}
	return out
}

// Every request of a real nova-compute to the conductor, made by the client, has the same
// form, and its real reply is understood.
func TestCapturedRequests(t *testing.T) {
	t.Parallel()
	for name, directory := range map[string]string{"zed": "zed", "2025.1": "epoxy"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rel, err := release.ByName(name)
			if err != nil {
				t.Fatal(err)
			}
			messages := capture.Load(t, directory)
			replies := map[string]*capture.Message{}
			for i, m := range messages {
				if m.Method == "" && m.MsgID != "" {
					replies[m.MsgID] = &messages[i]
				}
			}
			repeated := map[string]int{}
			for _, m := range messages {
				if m.Method != "object_action" && m.Method != "object_class_action_versions" {
					continue
				}
				repeat(t, rel, m, replies[m.MsgID], repeated)
			}
			t.Logf("%d kinds of requests, %v", len(repeated), repeated)
			if name == "zed" && len(repeated) < len(calls)-3 {
				t.Errorf("only %d kinds of requests were seen", len(repeated))
			}
		})
	}
}

func repeat(t *testing.T, rel release.Release, m capture.Message, reply *capture.Message, repeated map[string]int) {
	t.Helper()
	want := decodeRequest(t, m.Args)
	key := want.key()
	if _, ok := notRepeated[key]; ok || reply == nil {
		return
	}
	call, ok := calls[key]
	if !ok {
		t.Errorf("%s line %d: %s is not covered", m.File, m.Line, key)
		return
	}
	if want.ObjInst != nil && slices.Equal(want.ObjInst.Changes, []string{"version"}) {
		return
	}
	repeated[key]++
	p := &played{reply: reply}
	ctx := reqctx.With(t.Context(), reqctx.FromMap(m.Context(t)))
	err := call(ctx, t, New(p, rel), decodeRequest(t, m.Args))
	if err != nil && (reply.Failure == nil || !exception.Is(err, "NotFound")) {
		t.Fatalf("%s line %d: %s: %v", m.File, m.Line, key, err)
	}
	got := decodeRequest(t, p.args)
	where := fmt.Sprintf("%s line %d: %s", m.File, m.Line, key)
	if p.method != m.Method || p.target.Topic != m.RoutingKey || p.target.Version != m.Version {
		t.Errorf("%s: sent %s to %+v", where, p.method, p.target)
	}
	if want := string(m.Context(t)["read_deleted"]); want != fmt.Sprintf("%q", p.readDeleted) && want != "" {
		if key != "MigrationList.get_by_filters" { // the caller's choice
			t.Errorf("%s: read_deleted %q, want %s", where, p.readDeleted, want)
		}
	}
	if diff := cmp.Diff(unlike(want.Kwargs), unlike(got.Kwargs)); diff != "" {
		t.Errorf("%s: kwargs (-want +got):\n%s", where, diff)
	}
	if diff := cmp.Diff(texts(want.Args), texts(got.Args)); diff != "" {
		t.Errorf("%s: args (-want +got):\n%s", where, diff)
	}
	if diff := cmp.Diff(want.Versions, got.Versions); diff != "" {
		t.Errorf("%s: object_versions (-want +got):\n%s", where, diff)
	}
	if want.ObjInst != nil {
		compareObject(t, where, want.ObjInst, got.ObjInst)
	}
}

func texts(raw []json.RawMessage) []any {
	out := make([]any, len(raw))
	for i := range raw {
		_ = json.Unmarshal(raw[i], &out[i]) // they were JSON already
	}
	return out
}

// compareObject wants the small object to say nothing that the full one of nova-compute
// does not say, and to change the same.
func compareObject(t *testing.T, where string, want, got *object.Generic) {
	t.Helper()
	if want.Class != got.Class || want.Version != got.Version || want.Namespace != got.Namespace {
		t.Errorf("%s: sent %v, want %v", where, got, want)
	}
	for name, value := range got.Data {
		var a, b any
		_ = json.Unmarshal(value, &a)
		if json.Unmarshal(want.Data[name], &b) != nil {
			t.Errorf("%s: sent field %s, which nova-compute does not send", where, name)
			continue
		}
		if diff := cmp.Diff(b, a); diff != "" {
			t.Errorf("%s: field %s (-want +got):\n%s", where, name, diff)
		}
	}
	wantChanges, gotChanges := slices.Sorted(slices.Values(want.Changes)), slices.Sorted(slices.Values(got.Changes))
	if got.Class == "Instance" && len(gotChanges) == 0 {
		return // destroy and drop_migration_context change nothing by themselves
	}
	if diff := cmp.Diff(wantChanges, gotChanges); diff != "" {
		t.Errorf("%s: changes (-want +got):\n%s", where, diff)
	}
}
