package object_test

import (
	"encoding/json"
	"testing"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// FuzzObject feeds foreign bytes to every type: nothing panics, and what decodes encodes
// to something that decodes again.
func FuzzObject(f *testing.F) {
	f.Add([]byte(instanceJSON))
	seen := map[string]bool{}
	for _, name := range []string{"stop", "server-create", "resize"} {
		for _, m := range capture.Operation(f, "zed", name) {
			capture.Objects(m.Body, func(class string, raw json.RawMessage) {
				if !seen[class] && len(raw) < 4096 {
					seen[class] = true
					f.Add([]byte(raw))
				}
			})
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, o := range []object.Object{&object.Instance{}, &object.Service{}, &object.ComputeNode{}, &object.BlockDeviceMapping{}, &object.RequestSpec{}, &object.InstanceInfoCache{}, &object.Generic{}} {
			if json.Unmarshal(b, o) != nil {
				continue
			}
			out, err := json.Marshal(o)
			if err != nil {
				t.Fatalf("encode %v: %v", o, err)
			}
			if err := json.Unmarshal(out, o); err != nil {
				t.Fatalf("decode %v again: %v\n%s", o, err, out)
			}
			if err := object.Mark(o); err != nil {
				t.Fatalf("mark %v: %v", o, err)
			}
		}
		var ni object.NetworkInfo
		if json.Unmarshal(b, &ni) == nil {
			if _, err := ni.Text(); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = object.List[object.Instance](b)
		var i object.Image
		if json.Unmarshal(b, &i) == nil {
			if _, err := json.Marshal(i); err != nil {
				t.Fatal(err)
			}
		}
	})
}
