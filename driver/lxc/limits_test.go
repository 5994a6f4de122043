package lxc

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/storage"
)

func TestCPUWeight(t *testing.T) {
	t.Parallel()
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 2048: 79, 262144: 10000, 1 << 40: 10000} {
		require.Equal(t, want, cpuWeight(shares), shares)
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		wa, wb := cpuWeight(a), cpuWeight(b)
		require.LessOrEqual(t, uint64(minWeight), wa)
		require.LessOrEqual(t, wa, uint64(maxWeight))
		if a <= b {
			require.LessOrEqual(t, wa, wb)
		}
	})
}

func TestLimitItems(t *testing.T) {
	t.Parallel()
	require.Empty(t, limitItems(flavor.Limits{}, layoutHybrid, true), "zero is not limited")
	require.Empty(t, limitItems(flavor.Limits{}, layoutV2, true))
	l := flavor.Limits{MemoryBytes: 100, SwapBytes: 20}
	require.Equal(t, []item{
		{"lxc.cgroup.memory.limit_in_bytes", "100"}, {"lxc.cgroup.memory.memsw.limit_in_bytes", "120"},
	}, limitItems(l, layoutHybrid, true))
	require.Equal(t, []item{{"lxc.cgroup.memory.limit_in_bytes", "100"}}, limitItems(l, layoutV1, false))
	require.Equal(t, []item{{"lxc.cgroup2.memory.max", "100"}, {"lxc.cgroup2.memory.swap.max", "20"}}, limitItems(l, layoutV2, true))
	l.SwapBytes = 0
	require.Contains(t, limitItems(l, layoutV2, true), item{"lxc.cgroup2.memory.swap.max", "0"}, "no swap in the flavor is none")
}

func TestDiskItems(t *testing.T) {
	t.Parallel()
	l := flavor.DiskLimits{ReadBytesSec: 5, TotalBytesSec: 9, WriteIOPSSec: 7}
	disk := []storage.Device{{Number: "8:0"}}
	require.Equal(t, []item{
		{"lxc.cgroup.blkio.throttle.read_bps_device", "8:0 5"},
		{"lxc.cgroup.blkio.throttle.write_bps_device", "8:0 9"},
		{"lxc.cgroup.blkio.throttle.write_iops_device", "8:0 7"},
	}, diskItems(l, layoutHybrid, disk))
	require.Equal(t, []item{{"lxc.cgroup2.io.max", "8:0 rbps=5 wbps=9 wiops=7"}}, diskItems(l, layoutV2, disk))
	require.Empty(t, diskItems(l, layoutV2, nil), "no block device below")
	require.Empty(t, diskItems(flavor.DiskLimits{}, layoutV2, disk))
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{"5.0.2": 5000002, "6.0.6": 6000006, "7.0.0": 7000000, "5.0.0-devel": 5000000} {
		v, err := parseVersion(s)
		require.NoError(t, err)
		require.Equal(t, want, v.number())
	}
	_, err := parseVersion("devel")
	require.Error(t, err)
}

func TestSupportedLayout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		version libVersion
		layout  layout
		want    string
	}{
		{libVersion{5, 0, 2}, layoutHybrid, ""},
		{libVersion{6, 0, 6}, layoutV1, ""},
		{libVersion{6, 0, 6}, layoutV2, ""},
		{libVersion{7, 0, 0}, layoutV2, ""},
		{libVersion{7, 0, 0}, layoutHybrid, "ignores cgroup v1"},
		{libVersion{7, 0, 0}, layoutV1, "ignores cgroup v1"},
		{libVersion{4, 0, 12}, layoutV2, "too old"},
	} {
		err := supportedLayout(test.version, test.layout)
		if test.want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, test.want)
	}
}
