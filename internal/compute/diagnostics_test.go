package compute

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
)

var someUsage = driver.Usage{
	CPUTime: 17300 * time.Millisecond, MemoryUsed: 100 << 20, MemoryCache: 20 << 20, SwapUsed: 4096,
	ReadBytes: 1, ReadRequests: 2, WriteBytes: 3, WriteRequests: 4, Processes: 7,
}

func TestInstanceDiagnostics(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.SetUsage(uuid, someUsage)
	answer, err := w.operate("get_instance_diagnostics", "", nil)
	require.NoError(t, err)
	raw, err := json.Marshal(answer)
	require.NoError(t, err)
	var got object.Diagnostics
	require.NoError(t, json.Unmarshal(raw, &got))
	require.Equal(t, "running", got.State)
	require.Equal(t, "libvirt", got.Driver)
	require.Equal(t, "fake", got.Hypervisor)
	require.Equal(t, "linux", got.HypervisorOS)
	require.InDelta(t, 0, *got.Uptime, patience.Seconds(), "its guest has just started")
	require.Equal(t, []int{64, 100}, []int{*got.MemoryDetails.Maximum, *got.MemoryDetails.Used})
	require.Equal(t, []int{1, 1, 1}, []int{got.NumCPUs, got.NumNICs, got.NumDisks})
	require.Equal(t, int64(17300*time.Millisecond), *got.CPUDetails[0].Time)
	require.Equal(t, "fa:16:3e:00:00:01", got.NICDetails[0].MACAddress)
	require.Nil(t, got.NICDetails[0].RxOctets, "the fake port has no device to count")
	require.Equal(t, []int64{1, 2, 3, 4}, []int64{
		*got.DiskDetails[0].ReadBytes, *got.DiskDetails[0].ReadRequests, *got.DiskDetails[0].WriteBytes, *got.DiskDetails[0].WriteRequests,
	})
	require.Empty(t, w.nova.Log(), "a query leaves no trace")

	// Every field that nova-compute's answer has, ours has.
	for _, m := range capture.Operation(t, "zed", "server-diagnostics") {
		var captured object.Diagnostics
		if json.Unmarshal(m.Result, &captured) == nil && captured.Class == "Diagnostics" {
			sameFields(t, &captured, &got)
			sameFields(t, captured.MemoryDetails, got.MemoryDetails)
			sameFields(t, captured.CPUDetails[0], got.CPUDetails[0])
			sameFields(t, captured.NICDetails[0], got.NICDetails[0])
			sameFields(t, captured.DiskDetails[0], got.DiskDetails[0])
			return
		}
	}
	t.Error("the capture has no diagnostics")
}

func sameFields(t *testing.T, want, got object.Object) {
	t.Helper()
	require.Equal(t, want.Head().Class, got.Head().Class)
	require.Equal(t, want.Head().Version, got.Head().Version)
	changed := func(o object.Object) []string { return slices.Sorted(slices.Values(o.Head().Changes)) }
	require.Equal(t, changed(want), changed(got), want.Head().Class)
}

func TestLegacyDiagnostics(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.SetUsage(uuid, someUsage)
	answer, err := w.operate("get_diagnostics", "", nil)
	require.NoError(t, err)
	got := answer.(map[string]any)
	require.InDelta(t, 0, got["uptime_seconds"], patience.Seconds(), "its guest has just started")
	delete(got, "uptime_seconds")
	require.Equal(t, map[string]any{
		"cpu0_time": int64(17300 * time.Millisecond), "memory": int64(64 << 10), "memory-actual": int64(64 << 10),
		"memory-rss": int64(100 << 10), "memory-cache": int64(20 << 10), "memory-swap": int64(4), "processes": 7,
		"sda_read": int64(1), "sda_read_req": int64(2), "sda_write": int64(3), "sda_write_req": int64(4), "sda_errors": int64(0),
	}, got)
}

func TestDiagnosticsOfOneThatDoesNotRun(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"get_diagnostics", "get_instance_diagnostics"} {
		for _, state := range []driver.PowerState{driver.PowerStateShutdown, driver.PowerStatePaused, driver.PowerStateSuspended} {
			w := built(t)
			w.driver.SetState(uuid, state)
			w.nova.Update(uuid, map[string]any{"power_state": int(state)})
			_, err := w.operate(method, "", nil)
			require.True(t, exception.Is(err, "InstanceInvalidState"), err)
			require.ErrorContains(t, err, "in power state "+state.String()+". Cannot get_diagnostics")
		}
	}
	w := built(t)
	w.driver.Fail("Usage", "", errBoom)
	_, err := w.operate("get_diagnostics", "", nil)
	require.ErrorIs(t, err, errBoom)
}

// TestInstanceMetrics: who is measured, and whose the instance is, comes from the records.
func TestInstanceMetrics(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.SetUsage(uuid, someUsage)
	got, err := w.labelled()
	require.NoError(t, err)
	inst := w.instance("flavor")
	require.Len(t, got, 1)
	require.Equal(t, []string{uuid, inst.ProjectID, inst.Flavor.Name}, []string{got[0].UUID, got[0].Project, got[0].Flavor})
	require.NotEmpty(t, got[0].Project)
	require.NotEmpty(t, got[0].Flavor)
	require.Len(t, got[0].VIFs, 1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(w.InstanceMetrics())
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Contains(t, families[0].String(), "compute_agent_instance_cpu_seconds_total")
	require.Contains(t, families[0].String(), "17.3")

	// A record of an agent that did not keep them gets them at the next start.
	rec, _, err := w.record(uuid)
	require.NoError(t, err)
	rec.Project, rec.Flavor = "", ""
	require.NoError(t, w.saveRecord(rec))
	require.NoError(t, w.restore(t.Context(), w.instance("flavor", "info_cache", "system_metadata", "metadata"), driver.PowerStateRunning))
	again, err := w.labelled()
	require.NoError(t, err)
	require.Equal(t, got, again)

	require.NoError(t, w.noteFlavor(uuid, "larger"))
	again, err = w.labelled()
	require.NoError(t, err)
	require.Equal(t, "larger", again[0].Flavor)

	rec.Incoming = &incoming{}
	require.NoError(t, w.saveRecord(rec))
	again, err = w.labelled()
	require.NoError(t, err)
	require.Empty(t, again, "what is on its way here is another host's")
}
