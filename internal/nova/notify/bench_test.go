package notify

import (
	"encoding/json"
	"testing"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
)

// BenchmarkInstance makes both forms of one event of a whole instance.
func BenchmarkInstance(b *testing.B) {
	var inst object.Instance
	for _, m := range capture.Operation(b, "zed", "server-create") {
		if m.Method == "build_and_run_instance" {
			if err := json.Unmarshal(m.Args["instance"], &inst); err != nil {
				b.Fatal(err)
			}
		}
	}
	e := New(&recorder{}, Options{Host: "h", Format: FormatBoth, Release: release.Oldest()})
	for b.Loop() {
		e.sender = &recorder{}
		e.Instance(b.Context(), Event{Action: "pause", Phase: "start", Instance: &inst})
	}
}
