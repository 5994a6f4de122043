package release

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/compute-agent/compute-agent/internal/nova/capture"
)

func TestByName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{
		"zed": 26, "Zed": 26, "2023.1": 27, "antelope": 27, "bobcat": 28, "2024.1": 29, "Caracal": 29, "dalmatian": 30,
		"2025.1": 31, "flamingo": 32, "gazpacho": 33, "2026.2": 34, "hibiscus": 34,
	} {
		r, err := ByName(name)
		if err != nil || r.Major != want {
			t.Errorf("%s: got %d, %v, want %d", name, r.Major, err, want)
		}
	}
	for _, name := range []string{"", "yoga", "2027.1", "26"} {
		if r, err := ByName(name); err == nil {
			t.Errorf("%q: got %s", name, r)
		}
	}
}

func TestDetect(t *testing.T) {
	t.Parallel()
	for version, want := range map[int]string{
		63: "", 64: "zed", 65: "2023.1", 66: "2023.1", 67: "2024.1", 68: "2025.1", 69: "2025.2", 70: "2025.2",
		71: "2026.1", 72: "2026.1", 73: "2026.2", 74: "2026.2", 75: "", 0: "", -1: "",
	} {
		r, ok := Detect(version)
		if r.Name != want || ok != (want != "") {
			t.Errorf("%d: got %q %v, want %q", version, r.Name, ok, want)
		}
	}
}

// Each release has what follows from the one before it.
func TestTable(t *testing.T) {
	t.Parallel()
	all := All()
	if len(all) != 9 || all[0].Name != Oldest().Name {
		t.Fatalf("%d releases, first %s", len(all), all[0])
	}
	for i, r := range all {
		if i > 0 {
			before := all[i-1]
			if r.Major != before.Major+1 || r.ServiceVersion < before.ServiceVersion || r.OldestCompute > before.ServiceVersion {
				t.Errorf("%s after %s: major %d, service version %d, oldest compute %d", r, before, r.Major, r.ServiceVersion, r.OldestCompute)
			}
		}
		if got, want := slices.Contains(r.Topics, "compute-alt"), r.ServiceVersion >= 71; got != want {
			t.Errorf("%s: topics %v", r, r.Topics)
		}
		if got, want := r.NodeIdentityFile, r.ServiceVersion >= 65; got != want {
			t.Errorf("%s: node identity file %v", r, got)
		}
		if got, want := r.SendsComputeID, r.ObjectVersion("Instance") == "2.8"; got != want {
			t.Errorf("%s: sends compute_id %v", r, got)
		}
		if r.InitialCPURatio == 0 || r.HealInterval == 0 || r.ComputeRPC == "" {
			t.Errorf("%s is incomplete", r)
		}
		for class := range basePayloads {
			if r.PayloadVersion(class) == "" {
				t.Errorf("%s: no version of %s", r, class)
			}
		}
	}
	if v := all[0].ObjectVersion("ShareMapping"); v != "" {
		t.Errorf("zed has ShareMapping %s", v)
	}
	if v := all[0].ObjectVersion("NoSuchClass"); v != "" {
		t.Errorf("zed has NoSuchClass %s", v)
	}
}

// Every class on the wire of a release has the version of the table.
func TestCapturedVersions(t *testing.T) {
	t.Parallel()
	for name, directory := range map[string]string{"zed": "zed", "2025.1": "epoxy"} {
		r, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		checked := map[string]bool{}
		for _, m := range capture.Load(t, directory) {
			capture.Objects(m.Body, func(class string, raw json.RawMessage) {
				var o struct {
					Version string `json:"nova_object.version"`
				}
				if err := json.Unmarshal(raw, &o); err != nil {
					t.Fatal(err)
				}
				want := r.ObjectVersion(class)
				if want == "" {
					want = r.PayloadVersion(class)
				}
				if want == "" {
					return // a payload of the API or the conductor
				}
				checked[class] = true
				if o.Version != want {
					t.Errorf("%s %s: version %s, want %s", name, class, o.Version, want)
				}
			})
		}
		if len(checked) < 40 {
			t.Errorf("%s: only %d classes were seen", name, len(checked))
		}
	}
}
