package object_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// typed makes an empty object of each class that has typed fields.
var typed = map[string]func() object.Object{
	"BlockDeviceMapping":     func() object.Object { return &object.BlockDeviceMapping{} },
	"BlockDeviceMappingList": func() object.Object { return &object.BlockDeviceMappingList{} },
	"ComputeNode":            func() object.Object { return &object.ComputeNode{} },
	"ComputeNodeList":        func() object.Object { return &object.ComputeNodeList{} },
	"ConsoleAuthToken":       func() object.Object { return &object.ConsoleAuthToken{} },
	"CpuDiagnostics":         func() object.Object { return &object.CPUDiagnostics{} },
	"Diagnostics":            func() object.Object { return &object.Diagnostics{} },
	"DiskDiagnostics":        func() object.Object { return &object.DiskDiagnostics{} },
	"Flavor":                 func() object.Object { return &object.Flavor{} },
	"HVSpec":                 func() object.Object { return &object.HVSpec{} },
	"ImageMeta":              func() object.Object { return &object.ImageMeta{} },
	"ImageMetaProps":         func() object.Object { return &object.ImageMetaProps{} },
	"Instance":               func() object.Object { return &object.Instance{} },
	"InstanceExternalEvent":  func() object.Object { return &object.InstanceExternalEvent{} },
	"InstanceInfoCache":      func() object.Object { return &object.InstanceInfoCache{} },
	"InstanceList":           func() object.Object { return &object.InstanceList{} },
	"KeyPair":                func() object.Object { return &object.KeyPair{} },
	"KeyPairList":            func() object.Object { return &object.KeyPairList{} },
	"LibvirtLiveMigrateData": func() object.Object { return &object.LiveMigrateData{} },
	"MemoryDiagnostics":      func() object.Object { return &object.MemoryDiagnostics{} },
	"Migration":              func() object.Object { return &object.Migration{} },
	"MigrationContext":       func() object.Object { return &object.MigrationContext{} },
	"MigrationList":          func() object.Object { return &object.MigrationList{} },
	"NetworkRequest":         func() object.Object { return &object.NetworkRequest{} },
	"NetworkRequestList":     func() object.Object { return &object.NetworkRequestList{} },
	"NicDiagnostics":         func() object.Object { return &object.NICDiagnostics{} },
	"PciDevicePoolList":      func() object.Object { return &object.PciDevicePoolList{} },
	"RequestGroup":           func() object.Object { return &object.RequestGroup{} },
	"RequestSpec":            func() object.Object { return &object.RequestSpec{} },
	"SchedulerLimits":        func() object.Object { return &object.SchedulerLimits{} },
	"Selection":              func() object.Object { return &object.Selection{} },
	"Service":                func() object.Object { return &object.Service{} },
	"ServiceList":            func() object.Object { return &object.ServiceList{} },
	"TagList":                func() object.Object { return &object.TagList{} },
	"TaskLog":                func() object.Object { return &object.TaskLog{} },
	"VirtualInterface":       func() object.Object { return &object.VirtualInterface{} },
	"VirtualInterfaceList":   func() object.Object { return &object.VirtualInterfaceList{} },
}

func empty(class string) object.Object {
	if f, ok := typed[class]; ok {
		return f()
	}
	return &object.Generic{}
}

// value decodes JSON for a comparison: change sets are sorted, numbers are compared as written
// except that 1.0 is 1.
func value(t *testing.T, raw []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return sortChanges(v)
}

// difference compares two JSON texts by value; the report is only made when there is one.
func difference(t *testing.T, want, got []byte) string {
	t.Helper()
	if bytes.Equal(want, got) {
		return ""
	}
	a, b := value(t, want), value(t, got)
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return cmp.Diff(a, b)
}

func sortChanges(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if names, ok := e.([]any); ok && k == "nova_object.changes" {
				slices.SortFunc(names, func(a, b any) int {
					if fmt.Sprint(a) < fmt.Sprint(b) {
						return -1
					}
					return 1
				})
				continue
			}
			v[k] = sortChanges(e)
		}
	case []any:
		for i, e := range v {
			v[i] = sortChanges(e)
		}
	}
	return v
}

// Every object in every message decodes and encodes to the same.
func TestCapturedObjectsRoundTrip(t *testing.T) {
	t.Parallel()
	for _, release := range []string{"zed", "epoxy"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			classes, seen := map[string]int{}, map[string]bool{}
			for _, m := range capture.Load(t, release) {
				capture.Objects(m.Body, func(class string, raw json.RawMessage) {
					classes[class]++
					if seen[string(raw)] {
						return
					}
					seen[string(raw)] = true
					o := empty(class)
					if err := json.Unmarshal(raw, o); err != nil {
						t.Fatalf("%s line %d: %v", m.File, m.Line, err)
					}
					got, err := json.Marshal(o)
					if err != nil {
						t.Fatalf("%s line %d: %v", m.File, m.Line, err)
					}
					if diff := difference(t, raw, got); diff != "" {
						t.Fatalf("%s line %d: %s is encoded differently (-want +got):\n%s", m.File, m.Line, class, diff)
					}
				})
			}
			t.Logf("%d classes, %d objects, %d of them different", len(classes), sum(classes), len(seen))
			if release == "zed" {
				for class := range typed {
					if classes[class] == 0 && class != "RequestGroup" {
						t.Errorf("class %s does not occur", class)
					}
				}
			}
		})
	}
}

func sum(m map[string]int) int {
	n := 0
	for v := range maps.Values(m) {
		n += v
	}
	return n
}

// emptyIsNull are fields in which "" and null are both in use; an assigned "" becomes null.
var emptyIsNull = map[string]bool{"Instance.kernel_id": true, "Instance.ramdisk_id": true, "Instance.config_drive": true}

// The typed fields say what the received fields say: encoding them anew gives the same.
func TestCapturedObjectsTypedFields(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, m := range capture.Load(t, "zed") {
		capture.Objects(m.Body, func(class string, raw json.RawMessage) {
			if typed[class] == nil || seen[string(raw)] {
				return
			}
			seen[string(raw)] = true
			o, again := typed[class](), typed[class]()
			if err := json.Unmarshal(raw, o); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, again); err != nil {
				t.Fatal(err)
			}
			if err := object.Mark(again); err != nil {
				t.Fatal(err)
			}
			for name, want := range o.Head().Data {
				got := again.Head().Data[name]
				if key := class + "." + name; emptyIsNull[key] && string(want) == `""` {
					continue
				}
				if diff := difference(t, want, got); diff != "" {
					t.Fatalf("%s line %d: typed field %s.%s differs (-want +got):\n%s", m.File, m.Line, class, name, diff)
				}
			}
		})
	}
	t.Logf("%d objects", len(seen))
}

// network_info is written byte for byte as Nova writes it, from typed values alone.
func TestCapturedNetworkInfo(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, release := range []string{"zed", "epoxy"} {
		for _, m := range capture.Load(t, release) {
			capture.Objects(m.Body, func(class string, raw json.RawMessage) {
				if class != "InstanceInfoCache" {
					return
				}
				var cache object.InstanceInfoCache
				if err := json.Unmarshal(raw, &cache); err != nil {
					t.Fatal(err)
				}
				var want *string
				if err := json.Unmarshal(cache.Data["network_info"], &want); err != nil || want == nil {
					return
				}
				seen[*want] = true
				got, err := cache.NetworkInfo.Text()
				if err != nil {
					t.Fatal(err)
				}
				if got != *want {
					t.Fatalf("%s line %d:\n got %s\nwant %s", m.File, m.Line, got, *want)
				}
			})
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d different texts were seen", len(seen))
	}
}

// The plain image dict of a build and the like keeps all its keys.
func TestCapturedImages(t *testing.T) {
	t.Parallel()
	n := 0
	for _, m := range capture.Load(t, "zed") {
		raw, ok := m.Args["image"]
		if !ok || string(raw) == "null" {
			continue
		}
		n++
		var i object.Image
		if err := json.Unmarshal(raw, &i); err != nil {
			t.Fatalf("%s line %d: %v", m.File, m.Line, err)
		}
		if i.ID == "" || i.Status == "" || i.MinRAM != 32 {
			t.Errorf("%s line %d: read %+v", m.File, m.Line, i)
		}
		got, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(value(t, raw), value(t, got)); diff != "" {
			t.Errorf("%s line %d (-want +got):\n%s", m.File, m.Line, diff)
		}
	}
	if n == 0 {
		t.Error("no image was seen")
	}
}

// What a remote method returns is stored in the object that it was called on.
func TestCapturedUpdates(t *testing.T) {
	t.Parallel()
	sent := map[string]json.RawMessage{}
	n := 0
	for _, m := range capture.Load(t, "zed") {
		if m.Method == "object_action" {
			sent[m.MsgID] = m.Args["objinst"]
			continue
		}
		raw, ok := sent[m.MsgID]
		if !ok || m.Result == nil || m.Failure != nil {
			continue
		}
		n++
		var pair []json.RawMessage
		var updates map[string]json.RawMessage
		if err := json.Unmarshal(m.Result, &pair); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(pair[0], &updates); err != nil {
			t.Fatal(err)
		}
		var g object.Generic
		if err := json.Unmarshal(raw, &g); err != nil {
			t.Fatal(err)
		}
		o := empty(g.Class)
		if err := json.Unmarshal(raw, o); err != nil {
			t.Fatal(err)
		}
		if err := object.Apply(o, updates); err != nil {
			t.Fatalf("%s line %d: %v", m.File, m.Line, err)
		}
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var after object.Generic
		if err := json.Unmarshal(b, &after); err != nil {
			t.Fatal(err)
		}
		for name, want := range updates {
			if name == "obj_what_changed" {
				continue
			}
			if diff := difference(t, want, after.Data[name]); diff != "" {
				t.Fatalf("%s line %d: %s.%s (-want +got):\n%s", m.File, m.Line, g.Class, name, diff)
			}
		}
	}
	t.Logf("%d replies", n)
	if n < 200 {
		t.Errorf("only %d replies were seen", n)
	}
}
