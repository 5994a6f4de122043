package diagnostics

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/vif"
)

func guest() *Guest {
	return &Guest{
		Instance: &object.Instance{VCPUs: 2, MemoryMB: 64, RootDeviceName: "/dev/vda"},
		Info:     driver.Info{PowerState: driver.PowerStateRunning, StartedAt: time.Now().Add(-time.Hour)},
		Usage:    driver.Usage{CPUTime: 10 * time.Second, MemoryUsed: 3 << 20, ReadBytes: 7},
		NICs: []NIC{
			{Device: "tap0", MAC: "fa:16:3e:00:00:01", Counters: &vif.Counters{RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8}},
			{Device: "tap1", MAC: "fa:16:3e:00:00:02"},
		},
	}
}

func TestLegacy(t *testing.T) {
	t.Parallel()
	got := guest().Legacy()
	require.InDelta(t, 3600, got["uptime_seconds"], 60)
	delete(got, "uptime_seconds")
	require.Equal(t, map[string]any{
		"memory": int64(64 << 10), "memory-actual": int64(64 << 10), "memory-rss": int64(3 << 10), "memory-cache": int64(0), "memory-swap": int64(0),
		"processes": 0, "cpu0_time": int64(5 * time.Second), "cpu1_time": int64(5 * time.Second),
		"vda_read": int64(7), "vda_read_req": int64(0), "vda_write": int64(0), "vda_write_req": int64(0), "vda_errors": int64(0),
		"tap0_rx": int64(1), "tap0_rx_packets": int64(2), "tap0_rx_errors": int64(3), "tap0_rx_drop": int64(4),
		"tap0_tx": int64(5), "tap0_tx_packets": int64(6), "tap0_tx_errors": int64(7), "tap0_tx_drop": int64(8),
	}, got, "of tap1 nothing is counted")
}

func TestObject(t *testing.T) {
	t.Parallel()
	got, err := guest().Object(release.Oldest(), "lxc")
	require.NoError(t, err)
	require.Equal(t, []string{"running", "lxc", "linux"}, []string{got.State, got.Hypervisor, got.HypervisorOS})
	require.Len(t, got.CPUDetails, 2)
	require.Equal(t, int64(5*time.Second), *got.CPUDetails[1].Time)
	require.Equal(t, 3, *got.MemoryDetails.Used)
	require.Len(t, got.NICDetails, 2)
	require.Equal(t, int64(5), *got.NICDetails[0].TxOctets)
	require.Nil(t, got.NICDetails[1].TxOctets)
	require.Equal(t, int64(7), *got.DiskDetails[0].ReadBytes)
}
