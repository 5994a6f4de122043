package flavor_test

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/flavor"
)

// small has two vCPUs.
func small(specs map[string]string) flavor.Flavor {
	return flavor.Flavor{Name: "m1.small", VCPUs: 2, MemoryMB: 512, RootGB: 10, SwapMB: 64, ExtraSpecs: specs}
}

// smallLimits is what small means without extra specs.
func smallLimits(change func(l *flavor.Limits)) flavor.Limits {
	l := flavor.Limits{
		CPUPeriodUS: 100_000, CPUQuotaUS: 200_000, CPUShares: 2048,
		MemoryBytes: 512 << 20, SwapBytes: 64 << 20, PIDs: 1000, RootGB: 10,
	}
	if change != nil {
		change(&l)
	}
	return l
}

var policy = flavor.Policy{DefaultPIDs: 1000}

func TestFromSpecs(t *testing.T) {
	t.Parallel()
	privileged := flavor.Policy{DefaultPIDs: 1000, AllowPrivileged: true}
	for _, tc := range []struct {
		name   string
		specs  map[string]string
		policy flavor.Policy
		want   flavor.Limits
		warned []string
	}{
		{name: "plain", want: smallLimits(nil)},
		{name: "pids of the flavor", specs: map[string]string{"lxc:pids": "77"}, want: smallLimits(func(l *flavor.Limits) { l.PIDs = 77 })},
		{name: "pids always finite", policy: flavor.Policy{DefaultPIDs: -1}, want: smallLimits(func(l *flavor.Limits) { l.PIDs = 4096 })},
		{
			name:  "quota is per vCPU",
			specs: map[string]string{"quota:cpu_period": "20000", "quota:cpu_quota": "5000"},
			want:  smallLimits(func(l *flavor.Limits) { l.CPUPeriodUS, l.CPUQuotaUS = 20_000, 10_000 }),
		},
		{
			name:  "quota alone",
			specs: map[string]string{"quota:cpu_quota": " 50000 "},
			want:  smallLimits(func(l *flavor.Limits) { l.CPUQuotaUS = 100_000 }),
		},
		{
			name:  "period alone",
			specs: map[string]string{"quota:cpu_period": "50000"},
			want:  smallLimits(func(l *flavor.Limits) { l.CPUPeriodUS, l.CPUQuotaUS = 50_000, 100_000 }),
		},
		{name: "a vCPU is at most one CPU", specs: map[string]string{"quota:cpu_quota": "900000"}, want: smallLimits(nil)},
		{name: "no bound below the vCPUs", specs: map[string]string{"quota:cpu_quota": "-1", "quota:cpu_shares": "0", "quota:cpu_period": "0"}, want: smallLimits(nil)},
		{name: "shares", specs: map[string]string{"quota:cpu_shares": "512"}, want: smallLimits(func(l *flavor.Limits) { l.CPUShares = 512 })},
		{
			name:   "shares beyond the kernel's",
			specs:  map[string]string{"quota:cpu_shares": "1000000"},
			want:   smallLimits(func(l *flavor.Limits) { l.CPUShares = 262144 }),
			warned: []string{"quota:cpu_shares"},
		},
		{
			name: "disk",
			specs: map[string]string{
				"quota:disk_read_bytes_sec": "1048576", "quota:disk_write_bytes_sec": "2097152", "quota:disk_total_iops_sec": "500",
			},
			want: smallLimits(func(l *flavor.Limits) {
				l.Disk = flavor.DiskLimits{ReadBytesSec: 1 << 20, WriteBytesSec: 2 << 20, TotalIOPSSec: 500}
			}),
		},
		{
			name: "network",
			specs: map[string]string{
				"quota:vif_inbound_average": "1000", "quota:vif_inbound_peak": "2000", "quota:vif_inbound_burst": "300",
				"quota:vif_outbound_average": "10", "quota:vif_outbound_peak": "5",
			},
			want: smallLimits(func(l *flavor.Limits) {
				l.Network = flavor.NetworkLimits{InboundAverage: 1000, InboundPeak: 2000, InboundBurst: 300, OutboundAverage: 10}
			}),
			warned: []string{"quota:vif_outbound_peak"},
		},
		{
			name:   "peak without average",
			specs:  map[string]string{"quota:vif_inbound_peak": "2000", "quota:vif_outbound_burst": "7"},
			want:   smallLimits(func(l *flavor.Limits) { l.Network = flavor.NetworkLimits{InboundAverage: 2000, InboundPeak: 2000} }),
			warned: []string{"quota:vif_inbound_peak", "quota:vif_outbound_burst"},
		},
		{name: "nested", specs: map[string]string{"lxd:nested_allowed": "True"}, want: smallLimits(func(l *flavor.Limits) { l.Nested = true })},
		{name: "nested twin", specs: map[string]string{"lxc:nested_allowed": "yes", "lxd:nested_allowed": "1"}, want: smallLimits(func(l *flavor.Limits) { l.Nested = true })},
		{name: "False means false", specs: map[string]string{"lxd:nested_allowed": "False", "lxd:privileged_allowed": "no"}, want: smallLimits(nil)},
		{
			name: "privileged", policy: privileged, specs: map[string]string{"lxd:privileged_allowed": "true"},
			want: smallLimits(func(l *flavor.Limits) { l.Privileged = true }),
		},
		{name: "policy alone is not enough", policy: privileged, want: smallLimits(nil)},
		{name: "isolated is always on", specs: map[string]string{"lxd:isolated": "true"}, want: smallLimits(nil)},
		{name: "isolated off", specs: map[string]string{"lxc:isolated": "false"}, want: smallLimits(nil), warned: []string{"lxc:isolated"}},
		{
			name: "harmless values of keys that are refused otherwise",
			specs: map[string]string{
				"hw:cpu_policy": "shared", "hw:cpu_thread_policy": "prefer", "hw:mem_page_size": "small", "hw:mem_encryption": "False",
				"os:secure_boot": "disabled", "hw:locked_memory": "0", "hw:cpu_realtime": "no", "hw:ephemeral_encryption": "false",
			},
			want: smallLimits(nil),
		},
		{
			name: "the scheduler's",
			specs: map[string]string{
				"resources:CUSTOM_X": "1", "resources1:VCPU": "1", "trait:HW_CPU_X86_AVX": "required", "trait_a:X": "required", "group_policy": "none",
				"capabilities:cpu_info:arch": "x86_64", "aggregate_instance_extra_specs:ssd": "true",
			},
			want: smallLimits(nil),
		},
		{
			name:   "others are ignored with one warning each, sorted",
			specs:  map[string]string{"hw:boot_menu": "true", "hide_hypervisor_id": "1", "quota:memory_limit": "5", "lxc:colour": "red", "hw_rng:allowed": "true"},
			want:   smallLimits(nil),
			warned: []string{"hide_hypervisor_id", "hw:boot_menu", "hw_rng:allowed", "lxc:colour", "quota:memory_limit"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := tc.policy
			if p == (flavor.Policy{}) {
				p = policy
			}
			got, warnings, err := flavor.FromSpecs(small(tc.specs), p)
			require.NoError(t, err)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("limits (-want +got):\n%s", diff)
			}
			var keys []string
			for _, w := range warnings {
				keys = append(keys, w.Key)
				require.Contains(t, w.String(), "extra spec "+w.Key+" ")
			}
			if diff := cmp.Diff(tc.warned, keys, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFromSpecsRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ key, value string }{
		{"hw:cpu_policy", "dedicated"},
		{"hw:cpu_policy", "mixed"},
		{"hw:cpu_dedicated_mask", "^0"},
		{"hw:cpu_thread_policy", "isolate"},
		{"hw:cpu_realtime", "yes"},
		{"hw:numa_nodes", "1"},
		{"hw:numa_cpus.0", "0,1"},
		{"hw:numa_mem.1", "256"},
		{"hw:mem_page_size", "large"},
		{"hw:mem_page_size", "2MB"},
		{"hw:locked_memory", "true"},
		{"hw:pmem", "A"},
		{"hw:mem_encryption", "True"},
		{"hw:ephemeral_encryption", "true"},
		{"hw:tpm_version", "2.0"},
		{"hw:tpm_model", "tpm-crb"},
		{"os:secure_boot", "required"},
		{"pci_passthrough:alias", "gpu:1"},
		{"accel:device_profile", "fpga"},
		{"lxd:privileged_allowed", "true"},
		{"lxc:privileged_allowed", "on"},
	} {
		t.Run(tc.key+"="+tc.value, func(t *testing.T) {
			t.Parallel()
			_, _, err := flavor.FromSpecs(small(map[string]string{tc.key: tc.value}), policy)
			var unsupported *flavor.UnsupportedError
			require.ErrorAs(t, err, &unsupported)
			require.Equal(t, tc.key, unsupported.Key)
			require.Contains(t, err.Error(), "unsupported flavor: "+tc.key+"="+tc.value+": ")
		})
	}
}

func TestFromSpecsInvalid(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		specs map[string]string
		key   string
	}{
		{map[string]string{"lxd:nested_allowed": "maybe"}, "lxd:nested_allowed"},
		{map[string]string{"lxd:nested_allowed": ""}, "lxd:nested_allowed"},
		{map[string]string{"lxd:nested_allowed": "true", "lxc:nested_allowed": "false"}, "lxd:nested_allowed"},
		{map[string]string{"hw:mem_encryption": "perhaps"}, "hw:mem_encryption"},
		{map[string]string{"lxc:pids": "0"}, "lxc:pids"},
		{map[string]string{"lxc:pids": "max"}, "lxc:pids"},
		{map[string]string{"quota:cpu_shares": "-1"}, "quota:cpu_shares"},
		{map[string]string{"quota:cpu_period": "999"}, "quota:cpu_period"},
		{map[string]string{"quota:cpu_period": "1000001"}, "quota:cpu_period"},
		{map[string]string{"quota:cpu_quota": "999"}, "quota:cpu_quota"},
		{map[string]string{"quota:cpu_quota": "1e5"}, "quota:cpu_quota"},
		{map[string]string{"quota:disk_read_bytes_sec": "99999999999999999999"}, "quota:disk_read_bytes_sec"},
		{map[string]string{"quota:disk_total_bytes_sec": "1", "quota:disk_read_bytes_sec": "1"}, "quota:disk_total_bytes_sec"},
		{map[string]string{"quota:disk_total_iops_sec": "1", "quota:disk_write_iops_sec": "1"}, "quota:disk_total_iops_sec"},
		{map[string]string{"quota:vif_inbound_average": "-5"}, "quota:vif_inbound_average"},
	} {
		_, _, err := flavor.FromSpecs(small(tc.specs), policy)
		var invalid *flavor.InvalidError
		require.ErrorAs(t, err, &invalid, "%v", tc.specs)
		require.Equal(t, tc.key, invalid.Key)
	}
	for key, f := range map[string]flavor.Flavor{
		"vcpus":     {MemoryMB: 1},
		"memory_mb": {VCPUs: 1},
		"swap":      {VCPUs: 1, MemoryMB: 1, SwapMB: -1},
		"root_gb":   {VCPUs: 1, MemoryMB: 1, RootGB: math.MaxInt},
	} {
		_, _, err := flavor.FromSpecs(f, policy)
		require.ErrorContains(t, err, "invalid flavor: "+key+"=")
	}
}

// keys that the property test draws from: known ones and anything else.
var keys = []string{
	"quota:cpu_shares", "quota:cpu_period", "quota:cpu_quota", "quota:disk_total_bytes_sec", "quota:disk_read_iops_sec",
	"quota:vif_inbound_average", "quota:vif_inbound_peak", "quota:vif_outbound_burst", "lxc:pids", "lxd:nested_allowed", "lxc:nested_allowed",
	"lxd:privileged_allowed", "hw:cpu_policy", "hw:mem_encryption", "hw:boot_menu", "resources:X", "other",
}

// TestLimitsAreSane: whatever a flavor says, the result is an error that names a key,
// or limits that a kernel takes and that do not exceed the flavor's columns.
func TestLimitsAreSane(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := flavor.Flavor{
			VCPUs:    rapid.IntRange(-1, 1<<20).Draw(t, "vcpus"),
			MemoryMB: rapid.IntRange(-1, 1<<30).Draw(t, "memory"),
			SwapMB:   rapid.IntRange(0, 1<<30).Draw(t, "swap"),
			ExtraSpecs: rapid.MapOfN(rapid.SampledFrom(keys), rapid.OneOf(
				rapid.Map(rapid.Int64(), func(n int64) string { return strconv.FormatInt(n, 10) }),
				rapid.Map(rapid.IntRange(-1, 1<<21), strconv.Itoa),
				rapid.SampledFrom([]string{"true", "False", "shared", "dedicated", ""}),
			), 0, 6).Draw(t, "specs"),
		}
		p := flavor.Policy{AllowPrivileged: rapid.Bool().Draw(t, "policy"), DefaultPIDs: rapid.Int64Range(0, 1<<20).Draw(t, "pids")}
		l, warnings, err := flavor.FromSpecs(f, p)
		if err != nil {
			var invalid *flavor.InvalidError
			var unsupported *flavor.UnsupportedError
			if !errors.As(err, &invalid) && !errors.As(err, &unsupported) {
				t.Fatalf("untyped error %v", err)
			}
			if l != (flavor.Limits{}) {
				t.Fatalf("limits beside an error: %+v", l)
			}
			return
		}
		switch {
		case l.CPUPeriodUS < 1000 || l.CPUPeriodUS > 1_000_000:
			t.Fatalf("period %d", l.CPUPeriodUS)
		case l.CPUQuotaUS < 1000 || l.CPUQuotaUS > l.CPUPeriodUS*int64(f.VCPUs):
			t.Fatalf("quota %d of period %d for %d vCPUs", l.CPUQuotaUS, l.CPUPeriodUS, f.VCPUs)
		case l.CPUShares < 2 || l.CPUShares > 262144:
			t.Fatalf("shares %d", l.CPUShares)
		case l.PIDs <= 0:
			t.Fatalf("pids %d", l.PIDs)
		case l.MemoryBytes != int64(f.MemoryMB)*1024*1024 || l.SwapBytes != int64(f.SwapMB)*1024*1024:
			t.Fatalf("memory %d, swap %d", l.MemoryBytes, l.SwapBytes)
		case l.Privileged && !p.AllowPrivileged:
			t.Fatal("privileged against the policy")
		case l.Network.InboundPeak != 0 && l.Network.InboundPeak < l.Network.InboundAverage:
			t.Fatalf("network %+v", l.Network)
		}
		seen := map[string]bool{}
		for _, w := range warnings {
			if seen[w.Key] || strings.HasPrefix(w.Key, "resources:") {
				t.Fatalf("warnings %v", warnings)
			}
			seen[w.Key] = true
		}
	})
}
