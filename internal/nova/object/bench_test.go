package object_test

import (
	"encoding/json"
	"testing"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// buildInstance is the instance of a build request, the fullest that occurs.
func buildInstance(b *testing.B) json.RawMessage {
	b.Helper()
	for _, m := range capture.Operation(b, "zed", "server-create") {
		if m.Method == "build_and_run_instance" {
			return m.Args["instance"]
		}
	}
	b.Fatal("no build in the capture")
	return nil
}

func BenchmarkDecodeInstance(b *testing.B) {
	raw := buildInstance(b)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if err := json.Unmarshal(raw, &object.Instance{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeInstance(b *testing.B) {
	var i object.Instance
	if err := json.Unmarshal(buildInstance(b), &i); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := json.Marshal(&i); err != nil {
			b.Fatal(err)
		}
	}
}
