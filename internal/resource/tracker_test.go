package resource

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

func instance(uuid string, vcpus, memoryMB int) *object.Instance {
	return &object.Instance{
		UUID: uuid, ImageRef: "i", VMState: "building", ProjectID: "p1",
		Flavor: &object.Flavor{VCPUs: vcpus, MemoryMB: memoryMB, RootGB: 10},
	}
}

func contextEnding(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), 20*time.Millisecond)
}

// saves are the fields that each save of the node changed.
func (f *fixture) saves() [][]string {
	var all [][]string
	for _, line := range f.nova.LogOf("ComputeNode.save") {
		var names []string
		for field := range strings.FieldsSeq(strings.TrimPrefix(line, "ComputeNode.save")) {
			name, _, _ := strings.Cut(field, "=")
			if name != "" && name[0] >= 'a' && name[0] <= 'z' {
				names = append(names, name)
			}
		}
		all = append(all, names)
	}
	return all
}

func TestFirstAudit(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "zed", nil)
	require.NoError(t, f.Start(t.Context(), 7))
	uuid := f.ProviderUUID()
	node := f.nova.Node(uuid)
	got := map[string]string{}
	for _, name := range []string{
		"vcpus", "memory_mb", "local_gb", "vcpus_used", "memory_mb_used", "local_gb_used", "free_ram_mb", "free_disk_gb", "disk_available_least",
		"running_vms", "current_workload", "host_ip", "hypervisor_type", "hypervisor_version", "hypervisor_hostname", "metrics", "numa_topology",
		"cpu_allocation_ratio",
	} {
		got[name] = string(node[name])
	}
	require.Empty(t, cmp.Diff(map[string]string{
		"vcpus": "4", "memory_mb": "8192", "local_gb": "100", "vcpus_used": "0", "memory_mb_used": "512", "local_gb_used": "1",
		"free_ram_mb": "7680", "free_disk_gb": "99", "disk_available_least": "60", "running_vms": "0", "current_workload": "0",
		"host_ip": `"192.0.2.7"`, "hypervisor_type": `"lxc"`, "hypervisor_version": "5000002", "hypervisor_hostname": `"` + testNode + `"`,
		"metrics": `"[]"`, "numa_topology": "null", "cpu_allocation_ratio": "4",
	}, got))
	var specs []object.HVSpec
	require.NoError(t, json.Unmarshal(node["supported_hv_specs"], &specs))
	require.Len(t, specs, 4)
	require.NotContains(t, node, "service_id", "zed has no such column")

	// The first save of a process has all fields, as nova-compute's has.
	saves := f.saves()
	require.Len(t, saves, 1)
	require.Len(t, saves[0], 21)
	f.nova.ClearLog()
	require.NoError(t, f.Audit(t.Context()))
	require.Empty(t, f.saves(), "an idle audit saves nothing")
}

func TestConfiguredRatiosAreStored(t *testing.T) {
	t.Parallel()
	two, zero := 2.0, 0.0
	f := newFixture(t, "2024.1", func(o *Options) { o.CPURatio, o.RAMRatio = &two, &zero })
	f.nova.SetNode(record(nodeUUID, testHost, testNode, map[string]any{"cpu_allocation_ratio": 16, "ram_allocation_ratio": 1.5}))
	require.NoError(t, f.Start(t.Context(), 7))
	require.Equal(t, "2", f.number(t, "cpu_allocation_ratio"))
	require.Equal(t, "1.5", f.number(t, "ram_allocation_ratio"), "0 is not set")
	require.Equal(t, "7", f.number(t, "service_id"))
}

func TestOrderOfPlacementAndNode(t *testing.T) {
	t.Parallel()
	for name, nodeFirst := range map[string]bool{"zed": true, "2023.1": false} {
		f := started(t, name, nil)
		f.host.MemoryMB = 9000
		var atSave int
		f.nova.On("ComputeNode.save", func() {
			p, _ := f.placement.Provider(f.ProviderUUID())
			atSave = p.Inventories["MEMORY_MB"].Total
		})
		require.NoError(t, f.Audit(t.Context()))
		require.Equal(t, nodeFirst, atSave == 8192, "%s: placement had %d when the node was saved", name, atSave)
	}
}

func TestAuditCounts(t *testing.T) {
	t.Parallel()
	f := started(t, "2025.2", nil)
	f.server("a", 1, 1000, 10, nil)
	f.server("b", 2, 2000, 20, map[string]any{"vm_state": "stopped", "image_ref": ""})
	f.server("c", 4, 4000, 40, map[string]any{"vm_state": "deleted"})
	f.server("d", 4, 4000, 40, map[string]any{"host": "other"})
	f.BuildFailed()
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, []string{"a", "b"}, f.Instances())
	require.Equal(t, "3", f.number(t, "vcpus_used"))
	require.Equal(t, "3512", f.number(t, "memory_mb_used"))
	require.Equal(t, "11", f.number(t, "local_gb_used"))
	var stats map[string]string
	require.NoError(t, json.Unmarshal(f.nova.Node(f.ProviderUUID())["stats"], &stats))
	require.Equal(t, "1", stats["failed_builds"])
	require.Equal(t, f.host.Uptime, stats["uptime"], "the API reads it from 2025.2 on")
	f.BuildSucceeded()
	require.NoError(t, f.Audit(t.Context()))
	require.NoError(t, json.Unmarshal(f.nova.Node(f.ProviderUUID())["stats"], &stats))
	require.Equal(t, "0", stats["failed_builds"])
	require.Equal(t, [][]string{{"stats"}}, f.saves()[1:], "only what changed is saved")
}

func TestFailedBuildsAreNotCounted(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", func(o *Options) { o.CountFailedBuilds = false })
	f.BuildFailed()
	require.NoError(t, f.Audit(t.Context()))
	require.Empty(t, f.saves(), "consecutive_build_service_disable_threshold is 0")
}

func TestResizeOnThisHost(t *testing.T) {
	t.Parallel()
	flavor := func(vcpus int) json.RawMessage {
		return novatest.Object("Flavor", novatest.Fields{
			"vcpus": novatest.Raw(vcpus), "memory_mb": novatest.Raw(100), "root_gb": novatest.Raw(0), "ephemeral_gb": novatest.Raw(0), "swap": novatest.Raw(0),
		})
	}
	for _, c := range []struct {
		name, vm, task string
		dest           string
		want           string // vcpus_used: the instance has 1, the new flavor 2, the old one 3
	}{
		{"prepared", "active", "resize_prep", testHost, "3"},
		{"finished", "resized", "", testHost, "4"},
		{"refused", "active", "", testHost, "1"},
		{"to another host", "active", "resize_prep", "other", "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := started(t, "2024.1", nil)
			f.server("a", 1, 100, 0, map[string]any{"vm_state": c.vm, "task_state": c.task, "new_flavor": flavor(2), "old_flavor": flavor(3)})
			f.nova.AddMigration(novatest.Fields{
				"id": novatest.Raw(1), "uuid": novatest.Raw("m"), "instance_uuid": novatest.Raw("a"),
				"source_compute": novatest.Raw(testHost), "dest_compute": novatest.Raw(c.dest), "status": novatest.Raw("error"),
			})
			f.nova.AddMigration(novatest.Fields{"id": novatest.Raw(2), "uuid": novatest.Raw("n"), "instance_uuid": novatest.Raw("elsewhere")})
			require.NoError(t, f.Audit(t.Context()))
			require.Equal(t, c.want, f.number(t, "vcpus_used"))
			require.Equal(t, "1", f.number(t, "running_vms"))
		})
	}
}

func TestRepairComputeIDs(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"2023.2": "-", "2024.1": "1"} {
		f := started(t, name, nil)
		f.server("a", 1, 64, 1, map[string]any{"compute_id": nil})
		require.NoError(t, f.Audit(t.Context()))
		require.Equal(t, want, f.nova.Field("a", "compute_id"), name)
		f.nova.ClearLog()
		require.NoError(t, f.Audit(t.Context()))
		require.Empty(t, f.nova.LogOf("Instance.save"), name)
	}
	f := started(t, "2024.1", nil)
	f.server("a", 1, 64, 1, map[string]any{"compute_id": nil})
	f.nova.Fail("Instance.save", errors.New("cut"))
	require.NoError(t, f.Audit(t.Context()))
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, "1", f.nova.Field("a", "compute_id"), "what one audit leaves the next one does")
}

func TestClaim(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	require.NoError(t, f.Claim(t.Context(), instance("a", 2, 1024)))
	require.Equal(t, [][]string{{
		"free_disk_gb", "free_ram_mb", "local_gb_used", "memory_mb_used", "running_vms", "stats", "vcpus_used",
	}}, f.saves())
	require.Equal(t, "2", f.number(t, "vcpus_used"))
	for _, large := range []*object.Instance{instance("b", 5, 64), instance("b", 1, 9000)} {
		err := f.Claim(t.Context(), large)
		require.True(t, exception.Is(err, "ComputeResourcesUnavailable"), "%v", err)
	}
	require.Equal(t, []string{"a"}, f.Instances())
	uuid, ok := f.NextInstance()
	require.True(t, ok)
	require.Equal(t, "a", uuid)

	f.nova.ClearLog()
	f.Forget(t.Context(), "a")
	f.Forget(t.Context(), "a")
	require.Len(t, f.saves(), 1, "what is not known needs no save")
	_, ok = f.NextInstance()
	require.False(t, ok)

	f.nova.Fail("ComputeNode.save", errors.New("cut"), errors.New("cut"))
	require.Error(t, f.Claim(t.Context(), instance("a", 1, 64)))
	f.Forget(t.Context(), "a") // logs, and leaves it to the audit
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, "0", f.number(t, "vcpus_used"))
}

func TestOwnership(t *testing.T) {
	t.Parallel()
	f := started(t, "2024.1", nil)
	require.Equal(t, map[string]any{"host": testHost, "launched_on": testHost, "node": testNode, "compute_id": 1}, f.Ownership())
	for _, value := range f.NoOwnership() {
		require.Nil(t, value)
	}
}

// TestAuditDuringClaims: what is claimed and forgotten while an audit reads its lists is
// not undone by it, whichever of the two the lists have seen.
func TestAuditDuringClaims(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	f.server("leaving", 1, 64, 1, nil)
	require.NoError(t, f.Audit(t.Context()))
	f.nova.On("MigrationList.get_in_progress_and_error", func() { // the list of instances is read
		if err := f.Claim(t.Context(), instance("coming", 2, 1024)); err != nil {
			t.Error(err)
		}
		f.Forget(t.Context(), "leaving")
	})
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, []string{"coming"}, f.Instances())
	require.Equal(t, "2", f.number(t, "vcpus_used"))

	f.nova.On("MigrationList.get_in_progress_and_error", nil)
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, []string{"leaving"}, f.Instances(), "the next audit believes the database")
}

// TestFlushIsShared: claims that come while a save is under way share the next one.
func TestFlushIsShared(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	synctest.Test(t, func(t *testing.T) {
		arrived, release := make(chan struct{}), make(chan struct{})
		first := true
		f.nova.On("ComputeNode.save", func() {
			if first {
				first = false
				close(arrived)
				<-release
			}
		})
		done := make(chan error, 20)
		go func() { done <- f.Claim(t.Context(), instance("first", 1, 64)) }()
		<-arrived
		for i := range 19 {
			go func() { done <- f.Claim(t.Context(), instance(string(rune('a'+i)), 1, 64)) }()
		}
		synctest.Wait()
		close(release)
		for range 20 {
			require.NoError(t, <-done)
		}
		require.Len(t, f.saves(), 2)
		require.Equal(t, "20", f.number(t, "running_vms"))
		f.nova.On("ComputeNode.save", nil)
	})
}

func TestAuditFailures(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	f.server("a", 1, 64, 1, nil)
	require.NoError(t, f.Audit(t.Context()))
	for _, call := range []string{
		"InstanceList.get_by_host_and_node", "MigrationList.get_in_progress_and_error", "Service.get_by_compute_host",
	} {
		f.nova.Fail(call, errors.New("cut"))
		require.ErrorContains(t, f.Audit(t.Context()), "cut", call)
		require.Equal(t, []string{"a"}, f.Instances(), "a failed audit changes nothing")
	}
	f.deps.HostInfo, f.Tracker.deps.HostInfo = nil, func(context.Context) (hostinfo.Info, error) { return f.host, errors.New("no /proc") }
	require.ErrorContains(t, f.Audit(t.Context()), "no /proc")
	leave, err := f.auditing.enter(t.Context())
	require.NoError(t, err)
	defer leave()
	ctx, cancel := contextEnding(t)
	defer cancel()
	require.ErrorContains(t, f.Audit(ctx), "wait for another audit")
}

func TestNextInstanceGoesRound(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	for _, uuid := range []string{"a", "b", "c"} {
		require.NoError(t, f.Claim(t.Context(), instance(uuid, 1, 64)))
	}
	var seen []string
	for range 6 {
		uuid, _ := f.NextInstance()
		seen = append(seen, uuid)
	}
	slices.Sort(seen)
	require.Equal(t, []string{"a", "a", "b", "b", "c", "c"}, seen)
}
