package resource

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

func TestUsageOf(t *testing.T) {
	t.Parallel()
	flavor := &object.Flavor{VCPUs: 2, MemoryMB: 1024, RootGB: 10, EphemeralGB: 5, Swap: 2047}
	for _, c := range []struct {
		name string
		inst *object.Instance
		f    *object.Flavor
		want usage
	}{
		{"image", &object.Instance{ImageRef: "i"}, flavor, usage{vcpus: 2, memoryMB: 1024, diskGB: 16}},
		{"volume", &object.Instance{}, flavor, usage{vcpus: 2, memoryMB: 1024, diskGB: 6}},
		{"flavor not loaded", &object.Instance{VCPUs: 1, MemoryMB: 64, RootGB: 3, EphemeralGB: 1}, nil, usage{vcpus: 1, memoryMB: 64, diskGB: 4}},
		{
			"states", &object.Instance{VMState: "active", TaskState: "rebooting", ProjectID: "p", OSType: "linux"}, &object.Flavor{},
			usage{vmState: "active", taskState: "rebooting", project: "p", osType: "linux"},
		},
	} {
		if diff := cmp.Diff(c.want, usageOf(c.inst, c.f), cmp.AllowUnexported(usage{})); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestRemoved(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		vm, task string
		want     bool
	}{
		{"active", "", false},
		{"active", "deleting", false},
		{"error", "", false},
		{"soft-delete", "", false},
		{"deleted", "", true},
		{"shelved_offloaded", "", true},
		{"shelved_offloaded", "spawning", false},
	} {
		require.Equal(t, c.want, removed(&object.Instance{VMState: c.vm, TaskState: c.task}), "%s/%s", c.vm, c.task)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	text := func(all map[string]*string) map[string]string {
		out := map[string]string{}
		for key, v := range all {
			out[key] = *v
		}
		return out
	}
	// One building server, as in the Zed capture of a create.
	got, workload := stats(map[string]usage{"a": {vmState: "building", project: "p"}}, 0, "")
	require.Empty(t, cmp.Diff(map[string]string{
		"failed_builds": "0", "num_instances": "1", "num_vm_building": "1", "num_task_None": "1", "num_os_type_None": "1",
		"num_proj_p": "1", "io_workload": "1",
	}, text(got)))
	require.Zero(t, workload)

	got, workload = stats(map[string]usage{
		"a": {vmState: "active", taskState: "rescuing", project: "p", osType: "linux"},
		"b": {vmState: "active", taskState: "deleting", project: "p"},
		"c": {vmState: "stopped", project: "q"},
	}, 3, "up 1 day")
	require.Empty(t, cmp.Diff(map[string]string{
		"failed_builds": "3", "num_instances": "3", "num_vm_active": "2", "num_vm_stopped": "1", "num_task_None": "1", "num_task_rescuing": "1",
		"num_task_deleting": "1", "num_os_type_None": "2", "num_os_type_linux": "1", "num_proj_p": "2", "num_proj_q": "1",
		"io_workload": "1", "uptime": "up 1 day",
	}, text(got)))
	require.Equal(t, 2, workload)
}

// TestClaimsAddUp: whatever is claimed, refused and forgotten, the node's numbers are the
// sum of what is on it, and free is what is left.
func TestClaimsAddUp(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", func(o *Options) { o.ReservedCPUs = 1 })
	rapid.Check(t, func(rt *rapid.T) {
		held := map[string]*object.Flavor{}
		for uuid := range f.instances {
			f.Forget(t.Context(), uuid)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"claim": func(rt *rapid.T) {
				uuid := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "uuid")
				flavor := &object.Flavor{
					VCPUs: rapid.IntRange(0, 6).Draw(rt, "vcpus"), MemoryMB: rapid.IntRange(0, 10000).Draw(rt, "memory"),
					RootGB: rapid.IntRange(0, 50).Draw(rt, "root"), EphemeralGB: rapid.IntRange(0, 5).Draw(rt, "ephemeral"),
					Swap: rapid.IntRange(0, 5000).Draw(rt, "swap"),
				}
				err := f.Claim(t.Context(), &object.Instance{UUID: uuid, ImageRef: "i", Flavor: flavor})
				if fits := flavor.VCPUs <= 4 && flavor.MemoryMB <= 8192; fits != (err == nil) {
					rt.Fatalf("claim of %d CPUs and %d MiB: %v", flavor.VCPUs, flavor.MemoryMB, err)
				}
				if err == nil {
					held[uuid] = flavor
				}
			},
			"forget": func(rt *rapid.T) {
				uuid := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "uuid")
				f.Forget(t.Context(), uuid)
				delete(held, uuid)
			},
			"": func(rt *rapid.T) {
				vcpus, memory, disk := 1, 512, 1500/1024
				for flavor := range maps.Values(held) {
					vcpus += flavor.VCPUs
					memory += flavor.MemoryMB
					disk += flavor.RootGB + flavor.EphemeralGB + flavor.Swap/1024
				}
				n := f.node
				got := []int{n.VCPUsUsed, n.MemoryMBUsed, n.LocalGBUsed, n.FreeRAMMB, n.FreeDiskGB, n.RunningVMs}
				want := []int{vcpus, memory, disk, 8192 - memory, 100 - disk, len(held)}
				if diff := cmp.Diff(want, got); diff != "" {
					rt.Fatal(diff)
				}
				if len(f.Instances()) != len(held) {
					rt.Fatalf("instances %v, want %v", f.Instances(), held)
				}
			},
		})
	})
}
