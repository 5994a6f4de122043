package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

func server() *object.Instance {
	return &object.Instance{
		Header: object.New("Instance", "2.7"), ID: 42, UUID: "u-1", ImageRef: "img", VMState: "active",
		Flavor: &object.Flavor{Header: object.New("Flavor", "1.2"), Name: "m1"},
	}
}

func types(r *recorder) []string {
	var out []string
	for _, s := range r.sent {
		out = append(out, strings.Join(append([]string{s.priority, s.publisherID, s.eventType}, s.topics...), " "))
	}
	return out
}

func TestForms(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		format string
		event  Event
		want   []string
	}{
		"default is legacy": {"", Event{Action: "pause", Phase: "start"}, []string{"INFO compute.h compute.instance.pause.start"}},
		"versioned":         {FormatVersioned, Event{Action: "pause", Phase: "start"}, []string{"INFO nova-compute:h instance.pause.start vn"}},
		"both":              {FormatBoth, Event{Action: "resize_prep", Phase: "end"}, []string{"INFO compute.h compute.instance.resize.prep.end", "INFO nova-compute:h instance.resize_prep.end vn"}},
		"error":             {FormatBoth, Event{Action: "create", Phase: "error", Err: errors.New("x")}, []string{"ERROR compute.h compute.instance.create.error", "ERROR nova-compute:h instance.create.error vn"}},
		"no phase":          {FormatBoth, Event{Action: "exists"}, []string{"INFO compute.h compute.instance.exists", "INFO nova-compute:h instance.exists vn"}},
		"volume start":      {FormatBoth, Event{Action: "volume_attach", Phase: "start"}, []string{"INFO nova-compute:h instance.volume_attach.start vn"}},
		"volume end":        {FormatBoth, Event{Action: "volume_attach", Phase: "end"}, []string{"INFO compute.h compute.instance.volume.attach", "INFO nova-compute:h instance.volume_attach.end vn"}},
		"interface":         {FormatBoth, Event{Action: "interface_attach", Phase: "end"}, []string{"INFO nova-compute:h instance.interface_attach.end vn"}},
		"fixed ip":          {FormatBoth, Event{Action: "create_ip", Phase: "end"}, []string{"INFO compute.h compute.instance.create_ip.end"}},
		"legacy only":       {FormatBoth, Event{Action: "pause", Phase: "end", LegacyOnly: true}, []string{"INFO compute.h compute.instance.pause.end"}},
		"versioned only":    {FormatBoth, Event{Action: "pause", Phase: "end", VersionedOnly: true}, []string{"INFO nova-compute:h instance.pause.end vn"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			e := New(r, Options{Host: "h", Format: c.format, VersionedTopics: []string{"vn"}, Release: release.Oldest()})
			c.event.Instance = server()
			e.Instance(t.Context(), c.event)
			if diff := cmp.Diff(c.want, types(r)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An event without what its payload needs is left out, without failing the operation.
func TestEventWithoutFlavor(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	e := New(r, Options{Host: "h", Format: FormatBoth, Release: release.Oldest()})
	inst := server()
	inst.Flavor = nil
	e.Instance(t.Context(), Event{Action: "pause", Phase: "start", Instance: inst})
	e.Instance(t.Context(), Event{Action: "pause", Phase: "start"})
	if len(r.sent) != 0 {
		t.Errorf("sent %v", types(r))
	}
}

func TestErrorPhase(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	e := New(r, Options{Host: "h", Format: FormatBoth, Release: release.Oldest()})
	err := fmt.Errorf("spawn: %w", exception.BuildAbort("u-1", `bad "image"`).Because(errors.New("no init")))
	e.Instance(t.Context(), Event{Action: "create", Phase: "error", Instance: server(), Err: err})
	var legacy map[string]any
	var versioned struct {
		Data struct {
			Fault struct {
				Data map[string]any `json:"nova_object.data"`
			} `json:"fault"`
		} `json:"nova_object.data"`
	}
	if err := errors.Join(json.Unmarshal(r.sent[0].payload, &legacy), json.Unmarshal(r.sent[1].payload, &versioned)); err != nil {
		t.Fatal(err)
	}
	const message = `Build of instance u-1 aborted: bad "image"`
	if legacy["exception"] != `BuildAbortException("Build of instance u-1 aborted: bad \"image\"")` || legacy["message"] != message || legacy["code"] != 500.0 {
		t.Errorf("legacy: %v %v %v", legacy["exception"], legacy["message"], legacy["code"])
	}
	fault := versioned.Data.Fault.Data
	if fault["exception"] != "BuildAbortException" || fault["exception_message"] != message ||
		fault["traceback"] != "nova.exception.BuildAbortException: spawn: "+message+"\nbecause: no init" {
		t.Errorf("versioned: %v", fault)
	}
}

// The failure of a method in both forms, as the one in the captures.
func TestException(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	e := New(r, Options{Host: "h", Format: FormatBoth, Release: release.Oldest()})
	e.Exception(t.Context(), "get_host_uptime", nil, exception.NotImplemented(""))
	want := []string{"ERROR compute.h get_host_uptime", "ERROR nova-compute:h compute.exception versioned_notifications"}
	if diff := cmp.Diff(want, types(r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := string(r.sent[0].payload); got != `{"args":{},"exception":"NotImplementedError()"}` {
		t.Errorf("legacy payload %s", got)
	}
	inst := server()
	inst.UserData, inst.KeyData = "c2VjcmV0", "ssh-ed25519"
	e.Exception(t.Context(), "stop_instance", inst, errors.New("x"))
	if got := string(r.sent[2].payload); strings.Contains(got, "c2VjcmV0") || !strings.Contains(got, `"uuid":"u-1"`) {
		t.Errorf("legacy payload %s", got)
	}
}

func TestBlockDevices(t *testing.T) {
	t.Parallel()
	volume := &object.BlockDeviceMapping{Header: object.New("BlockDeviceMapping", "1.21"), VolumeID: "v-1", DeviceName: "/dev/sdb"}
	for name, c := range map[string]struct {
		given []*object.BlockDeviceMapping
		read  func(context.Context, string) ([]*object.BlockDeviceMapping, error)
		want  string
	}{
		"none given, off": {nil, nil, `null`},
		"image disk":      {[]*object.BlockDeviceMapping{{}}, nil, `[]`},
		"read":            {nil, func(context.Context, string) ([]*object.BlockDeviceMapping, error) { return nil, nil }, `[]`},
		"volume": {
			[]*object.BlockDeviceMapping{volume},
			nil,
			`[{"nova_object.name":"BlockDevicePayload","nova_object.namespace":"nova","nova_object.version":"1.0","nova_object.data":{"boot_index":null,"delete_on_termination":false,"device_name":"/dev/sdb","tag":null,"volume_id":"v-1"}}]`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			e := New(r, Options{Host: "h", Format: FormatVersioned, Release: release.Oldest(), BDMs: c.read})
			e.Instance(t.Context(), Event{Action: "pause", Phase: "end", Instance: server(), BDMs: c.given})
			if got := string(generic(t, r.sent[0].payload).Data["block_devices"]); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestImageURL(t *testing.T) {
	t.Parallel()
	catalog := json.RawMessage(`[{"type": "network", "endpoints": []}, {"type": "image", "endpoints": [{"publicURL": "http://p", "internalURL": "http://i/"}]}]`)
	for name, c := range map[string]struct {
		configured string
		catalog    json.RawMessage
		want       string
	}{
		"configured":   {"http://c", catalog, "http://c/images/img"},
		"from catalog": {"", catalog, "http://i/images/img"},
		"unknown":      {"", json.RawMessage(`[]`), "img"},
		"no catalog":   {"", nil, "img"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := New(&recorder{}, Options{GlanceEndpoint: c.configured})
			ctx := reqctx.With(t.Context(), &reqctx.Request{ServiceCatalog: c.catalog})
			if got := e.imageURL(ctx, "img"); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
