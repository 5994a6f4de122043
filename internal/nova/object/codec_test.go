package object_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

const instanceJSON = `{"nova_object.name": "Instance", "nova_object.namespace": "nova", "nova_object.version": "2.9.1",
 "nova_object.data": {"id": 10, "uuid": "u-1", "task_state": "powering-off", "vm_state": "active", "kernel_id": "", "host": null,
  "launched_at": "2026-11-20T17:47:26Z", "power_state": 1, "from_the_future": {"a": [1, null]},
  "system_metadata": {"image_min_ram": "32", "gone": null},
  "flavor": {"nova_object.name": "Flavor", "nova_object.namespace": "nova", "nova_object.version": "1.2",
             "nova_object.data": {"name": "m1", "vcpus": 2, "rxtx_factor": 1.0}}},
 "nova_object.changes": ["tags", "ec2_ids"]}`

func instance(t *testing.T) *object.Instance {
	t.Helper()
	var i object.Instance
	if err := json.Unmarshal([]byte(instanceJSON), &i); err != nil {
		t.Fatal(err)
	}
	return &i
}

func TestInstanceReading(t *testing.T) {
	t.Parallel()
	i := instance(t)
	if i.ID != 10 || i.UUID != "u-1" || i.TaskState != "powering-off" || i.Host != "" || i.PowerState != 1 {
		t.Errorf("columns: %d %s %s %q %d", i.ID, i.UUID, i.TaskState, i.Host, i.PowerState)
	}
	if want := time.Date(2026, 11, 20, 17, 47, 26, 0, time.UTC); !i.LaunchedAt.Equal(want) {
		t.Errorf("launched_at %v, want %v", i.LaunchedAt, want)
	}
	if i.Flavor == nil || i.Flavor.Name != "m1" || i.Flavor.VCPUs != 2 || *i.Flavor.RxTxFactor != 1 {
		t.Errorf("flavor %v", i.Flavor)
	}
	if i.System("image_min_ram") != "32" || i.System("gone") != "" || i.System("absent") != "" {
		t.Errorf("system_metadata %v", i.SystemMetadata)
	}
	for field, want := range map[string][2]bool{"host": {true, true}, "node": {false, false}, "uuid": {true, false}} {
		if got := [2]bool{i.IsSet(field), i.IsNull(field)}; got != want {
			t.Errorf("%s set, null: %v, want %v", field, got, want)
		}
	}
}

// Assigned fields travel and are listed as changed; the others stay as they came.
func TestInstanceEditing(t *testing.T) {
	t.Parallel()
	i := instance(t)
	i.TaskState, i.VMState = "", "stopped"
	i.PowerState = 0
	i.Flavor.VCPUs = 4
	i.AvailabilityZone = "nova"
	got, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(
		`"task_state": "powering-off", "vm_state": "active"`, `"task_state": null, "vm_state": "stopped", "availability_zone": "nova"`,
		`"power_state": 1`, `"power_state": 0`,
		`"vcpus": 2, "rxtx_factor": 1.0}`, `"vcpus": 4, "rxtx_factor": 1.0}, "nova_object.changes": ["vcpus"]`,
		`["tags", "ec2_ids"]`, `["tags", "ec2_ids", "task_state", "vm_state", "power_state", "availability_zone", "flavor"]`,
	).Replace(instanceJSON)
	if diff := cmp.Diff(value(t, []byte(want)), value(t, got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSetAndApply(t *testing.T) {
	t.Parallel()
	i := instance(t)
	if err := object.Set(i, map[string]any{"vm_state": "error", "task_state": nil, "launched_at": object.At(time.Unix(0, 5))}); err != nil {
		t.Fatal(err)
	}
	if i.VMState != "error" || i.TaskState != "" || string(i.Data["launched_at"]) != `"1970-01-01T00:00:00Z"` {
		t.Errorf("after Set: %s %s %s", i.VMState, i.TaskState, i.Data["launched_at"])
	}
	if diff := cmp.Diff([]string{"tags", "ec2_ids", "launched_at", "task_state", "vm_state"}, i.Changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	err := object.Apply(i, map[string]json.RawMessage{
		"vm_state": []byte(`"active"`), "unknown": []byte(`7`), "obj_what_changed": []byte(`["ec2_ids"]`),
	})
	if err != nil {
		t.Fatal(err)
	}
	if i.VMState != "active" || string(i.Data["unknown"]) != "7" || i.IsSet("obj_what_changed") || len(i.Changes) != 1 {
		t.Errorf("after Apply: %s %s %v", i.VMState, i.Data["unknown"], i.Changes)
	}
	before := i.Clone()
	err = object.Apply(i, map[string]json.RawMessage{"vm_state": []byte(`"x"`), "id": []byte(`"no number"`)})
	var format *object.FormatError
	if !errors.As(err, &format) || format.Class != "Instance" || format.Field != "id" {
		t.Errorf("error %v", err)
	}
	if i.VMState != "active" || cmp.Diff(before.Data, i.Data) != "" {
		t.Error("a failed Apply changed the object")
	}
}

// An object that is built here: lists and maps are never null, Mark sets zero values too.
func TestBuilding(t *testing.T) {
	t.Parallel()
	d := &object.Diagnostics{Header: object.New("Diagnostics", "1.0"), State: "running", Driver: "libvirt", MemoryDetails: &object.MemoryDiagnostics{
		Header: object.New("MemoryDiagnostics", "1.0"), Maximum: new(int),
	}}
	if err := object.Mark(d); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"nova_object.name":"Diagnostics","nova_object.namespace":"nova","nova_object.version":"1.0","nova_object.data":{
	 "state":"running","driver":"libvirt","hypervisor":null,"hypervisor_os":null,"uptime":null,"config_drive":false,
	 "memory_details":{"nova_object.name":"MemoryDiagnostics","nova_object.namespace":"nova","nova_object.version":"1.0",
	   "nova_object.data":{"maximum":0},"nova_object.changes":["maximum"]},
	 "cpu_details":[],"nic_details":[],"disk_details":[],"num_cpus":0,"num_nics":0,"num_disks":0},
	 "nova_object.changes":["state","driver","hypervisor","hypervisor_os","uptime","config_drive","memory_details","cpu_details",
	   "nic_details","disk_details","num_cpus","num_nics","num_disks"]}`
	if diff := cmp.Diff(value(t, []byte(want)), value(t, got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMalformedObjects(t *testing.T) {
	t.Parallel()
	envelope := func(name, namespace, version, data string) string {
		return fmt.Sprintf(`{"nova_object.name": %q, "nova_object.namespace": %q, "nova_object.version": %q, "nova_object.data": %s}`, name, namespace, version, data)
	}
	for name, c := range map[string]struct{ in, want string }{
		"no object":       {`{"id": 1}`, "decode Instance: not a versioned object"},
		"a list":          {`[]`, "decode Instance: found a JSON array where object.envelope is expected"},
		"another class":   {envelope("Service", "nova", "1.22", "{}"), `decode Instance: found an object of class "Service"`},
		"namespace":       {envelope("Instance", "other", "2.7", "{}"), "decode Instance: namespace is not nova"},
		"version":         {envelope("Instance", "nova", "two", "{}"), `decode Instance: version "two" is not of the form X.Y`},
		"negative":        {envelope("Instance", "nova", "2.-7", "{}"), `decode Instance: version "2.-7" is not of the form X.Y`},
		"unknown major":   {envelope("Instance", "nova", "3.0", "{}"), "decode Instance 3.0: major version 3 is not supported, only 2"},
		"no data":         {envelope("Instance", "nova", "2.7", "null"), "decode Instance 2.7: data is missing"},
		"wrong type":      {envelope("Instance", "nova", "2.7", `{"id": "7"}`), "decode Instance 2.7 field id: found a JSON string where int is expected"},
		"wrong time":      {envelope("Instance", "nova", "2.7", `{"launched_at": "today"}`), `decode Instance 2.7 field launched_at: "today" is not a time of the form YYYY-MM-DDTHH:MM:SSZ`},
		"nested":          {envelope("Instance", "nova", "2.7", `{"flavor": {"nova_object.name": "Service"}}`), `decode Instance 2.7 field flavor: decode Flavor: found an object of class "Service"`},
		"secret is muted": {envelope("Instance", "nova", "2.7", `{"key_data": 123456}`), "decode Instance 2.7 field key_data: found a JSON number where string is expected"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := json.Unmarshal([]byte(c.in), &object.Instance{})
			var format *object.FormatError
			if !errors.As(err, &format) || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestNetworkInfoOddities(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty":      `[]`,
		"no gateway": `[{"id": "p", "address": null, "network": {"id": null, "bridge": null, "label": "a<b>&c \u00e9\ud83d\ude00\u007f", "subnets": [{"cidr": null, "dns": [], "gateway": {"address": null, "type": "gateway", "version": null, "meta": {}}, "ips": [], "routes": [{"cidr": "10.0.0.0/8", "gateway": null, "interface": null, "meta": {}}], "version": null, "meta": {}}], "meta": {}}, "type": null, "details": {"b": 1.50, "a": {"z": null, "y": [1, 2]}}, "devname": null, "ovs_interfaceid": null, "qbh_params": null, "qbg_params": {"x": 1}, "active": false, "vnic_type": null, "profile": null, "preserve_on_delete": true, "delegate_create": false, "meta": {}, "later": 1}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ni object.NetworkInfo
			if err := json.Unmarshal([]byte(text), &ni); err != nil {
				t.Fatal(err)
			}
			got, err := ni.Text()
			if err != nil || got != text {
				t.Errorf("error %v\n got %s\nwant %s", err, got, text)
			}
		})
	}
	if got, err := object.NetworkInfo(nil).Text(); got != "[]" || err != nil {
		t.Errorf("nil: %s, %v", got, err)
	}
}

func TestDict(t *testing.T) {
	t.Parallel()
	var d object.Dict
	for _, kv := range []struct {
		key   string
		value any
	}{{"z", 1}, {"a", "x"}, {"z", 2}, {"b", true}} {
		var err error
		if d, err = d.With(kv.key, kv.value); err != nil {
			t.Fatal(err)
		}
	}
	other := d.Without("a")
	b, err := json.Marshal([]object.Dict{d, other, {}})
	if err != nil || string(b) != `[{"z":2,"a":"x","b":true},{"z":2,"b":true},{}]` {
		t.Errorf("%s, %v", b, err)
	}
	if d.Int("z") != 2 || d.Text("a") != "x" || !d.Bool("b") || d.Int("a") != 0 || d.Text("none") != "" || d.Bool("z") {
		t.Error("values are read wrongly")
	}
}

func TestDateTime(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`"2026-01-02T03:04:05Z"`:             `"2026-01-02T03:04:05Z"`,
		`"2026-01-02T03:04:05.678901+01:00"`: `"2026-01-02T02:04:05Z"`,
		`"2026-01-02T03:04:05.000000"`:       `"2026-01-02T03:04:05Z"`,
		`"2026-01-02 03:04:05+00:00"`:        `"2026-01-02T03:04:05Z"`,
		`null`:                               `null`,
	} {
		var d object.DateTime
		if err := json.Unmarshal([]byte(in), &d); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if got, err := json.Marshal(d); string(got) != want || err != nil {
			t.Errorf("%s: got %s, want %s (%v)", in, got, want, err)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	event := `{"nova_object.name": "InstanceExternalEvent", "nova_object.namespace": "nova", "nova_object.version": "1.5", "nova_object.data": {"name": "network-changed", "data": {}}}`
	for in, want := range map[string]int{
		`null`: 0, `[]`: 0, `[` + event + `,` + event + `]`: 2,
		`{"nova_object.name": "XList", "nova_object.namespace": "nova", "nova_object.version": "1.0", "nova_object.data": {"objects": [` + event + `]}}`: 1,
	} {
		got, err := object.List[object.InstanceExternalEvent]([]byte(in))
		if err != nil || len(got) != want {
			t.Errorf("%s: %d objects, %v", in, len(got), err)
		}
	}
	for _, in := range []string{`[null]`, `7`, `{}`, `{"nova_object.name": "XList", "nova_object.namespace": "nova", "nova_object.version": "1.0", "nova_object.data": {}}`} {
		if _, err := object.List[object.InstanceExternalEvent]([]byte(in)); err == nil {
			t.Errorf("%s: no error", in)
		}
	}
}

// No formatting verb shows what an object holds.
func TestFormattingShowsNoContent(t *testing.T) {
	t.Parallel()
	i := instance(t)
	i.UserData = "c2VjcmV0"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{i, *i} {
			if got := fmt.Sprintf(verb, v); got != "Instance 2.9.1" {
				t.Errorf("%s: %s", verb, got)
			}
		}
	}
}

func TestImageEditing(t *testing.T) {
	t.Parallel()
	var i object.Image
	in := `{"id": "i", "size": null, "min_ram": 32, "disk_format": null, "properties": {"hw_architecture": "x86_64"}, "stores": "fs"}`
	if err := json.Unmarshal([]byte(in), &i); err != nil {
		t.Fatal(err)
	}
	i.Status = "active"
	got, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id": "i", "size": null, "min_ram": 32, "disk_format": null, "properties": {"hw_architecture": "x86_64"}, "stores": "fs", "status": "active"}`
	if diff := cmp.Diff(value(t, []byte(want)), value(t, got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if i.Property("hw_architecture") != "x86_64" || i.Property("none") != "" {
		t.Error("properties are read wrongly")
	}
}

func TestInstanceName(t *testing.T) {
	t.Parallel()
	i := &object.Instance{ID: 42, UUID: "u-1"}
	for template, want := range map[string]string{
		"":                    "instance-0000002a",
		"instance-%08x":       "instance-0000002a",
		"vm%d":                "vm42",
		"vm-%5d":              "vm-   42",
		"i-%(uuid)s":          "i-u-1",
		"%(id)06d-%(uuid)s":   "000042-u-1",
		"%X%%":                "2A%",
		"%(display_name)s":    "u-1",
		"%(uuid)d":            "u-1",
		"%99999999999999999d": "u-1",
		"constant":            "constant",
	} {
		if got := i.Name(template); got != want {
			t.Errorf("%q: got %q, want %q", template, got, want)
		}
	}
}
