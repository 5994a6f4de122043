package hostinfo

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
)

// tree writes a host's files below a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return root
}

// host is a machine with two sockets of two cores with two threads, CPU 7 off line.
func host() map[string]string {
	files := map[string]string{
		"proc/sys/kernel/hostname":  "node-1\n",
		"proc/sys/kernel/osrelease": "6.1.0-25-amd64\n",
		"proc/meminfo":              "MemTotal:       16384000 kB\nMemFree:         1024 kB\n",
		"proc/stat":                 "cpu  1 2 3\nintr 1\nctxt 2\nbtime 1700000000\nprocesses 4\n",
		"proc/uptime":               "270330.55 1234.00\n",
		"proc/loadavg":              "0.15 0.28 0.29 1/230 17471\n",
		"proc/cpuinfo":              "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6130\nflags\t\t: sse2 avx aes avx\n\nprocessor\t: 1\nflags\t\t: other\n",
		"proc/self/mounts":          "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
		"sys/kernel/security/lsm":   "lockdown,capability,yama,apparmor",

		"sys/devices/system/cpu/online":      "0-6\n",
		"sys/devices/system/node/node0/x":    "",
		"sys/devices/system/node/node1/x":    "",
		"sys/devices/system/node/has_cpu":    "0-1\n",
		"sys/devices/system/node/possible":   "0-1\n",
		"run/utmp":                           string(utmp(utmpSize, 2, utmpUserProcess, 8, utmpUserProcess)),
		"sys/devices/system/cpu/possible":    "0-7\n",
		"sys/devices/system/cpu/cpufreq/any": "",
	}
	for cpu := range 8 {
		dir := "sys/devices/system/cpu/cpu" + string(rune('0'+cpu)) + "/topology/"
		files[dir+"physical_package_id"] = string(rune('0'+cpu/4)) + "\n"
		files[dir+"thread_siblings_list"] = string(rune('0'+cpu/2*2)) + "-" + string(rune('1'+cpu/2*2)) + "\n"
	}
	return files
}

// utmp makes login records of the given kinds.
func utmp(size int, kinds ...uint16) []byte {
	var b bytes.Buffer
	for _, k := range kinds {
		rec := make([]byte, size)
		binary.NativeEndian.PutUint16(rec, k)
		copy(rec[utmpUserOffset:], "somebody")
		b.Write(rec)
	}
	return b.Bytes()
}

func testReader(root, machine string) reader {
	return reader{
		root:   root,
		uname:  func() (string, error) { return machine, nil },
		source: func(context.Context) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.7"), nil },
		now:    func() time.Time { return time.Date(2026, 11, 20, 21, 45, 12, 0, time.UTC) },
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	got, err := testReader(tree(t, host()), "x86_64").read(t.Context())
	require.NoError(t, err)
	want := Info{
		Hostname: "node-1", Kernel: "6.1.0-25-amd64", Arch: "x86_64",
		OnlineCPUs: []int{0, 1, 2, 3, 4, 5, 6}, CPUs: 7, MemoryMB: 16000,
		CPU: CPU{
			Arch: "x86_64", Model: "Intel(R) Xeon(R) Gold 6130", Vendor: "Intel",
			Topology: Topology{Cells: 2, Sockets: 1, Cores: 2, Threads: 2},
			Features: []string{"aes", "avx", "sse2"},
		},
		Uptime:    " 21:45:12 up 3 days,  3:05,  2 users,  load average: 0.15, 0.28, 0.29",
		BootTime:  time.Unix(1700000000, 0),
		DefaultIP: netip.MustParseAddr("192.0.2.7"),
		Cgroups:   CgroupV2,
		LSMs:      []string{"lockdown", "capability", "yama", "apparmor"},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
}

// TestReadBareHost: what a small kernel does not tell is left out, not an error.
func TestReadBareHost(t *testing.T) {
	t.Parallel()
	files := host()
	for name := range files {
		if strings.Contains(name, "/topology/") || strings.Contains(name, "/node/") || name == "run/utmp" || strings.HasSuffix(name, "/lsm") {
			delete(files, name)
		}
	}
	files["proc/cpuinfo"] = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
	got, err := testReader(tree(t, files), "aarch64").read(t.Context())
	require.NoError(t, err)
	require.Equal(t, CPU{
		Arch: "aarch64", Model: "0xd0c", Vendor: "ARM",
		Topology: Topology{Cells: 1, Sockets: 1, Cores: 7, Threads: 1}, Features: []string{"asimd", "fp"},
	}, got.CPU)
	require.Nil(t, got.LSMs)
	require.Contains(t, got.Uptime, ",  0 user,")
}

func TestReadNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"proc/sys/kernel/hostname":      "read host name",
		"proc/sys/kernel/osrelease":     "read kernel release",
		"proc/meminfo":                  "read memory size",
		"proc/stat":                     "read boot time",
		"proc/uptime":                   "read uptime",
		"proc/loadavg":                  "read load average",
		"proc/cpuinfo":                  "read processor description",
		"proc/self/mounts":              "read mounts",
		"sys/devices/system/cpu/online": "read online CPUs",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := host()
			delete(files, name)
			_, err := testReader(tree(t, files), "x86_64").read(t.Context())
			require.ErrorContains(t, err, want)

			files[name] = "\n"
			_, err = testReader(tree(t, files), "x86_64").read(t.Context())
			if strings.Contains(name, "kernel/") || name == "proc/cpuinfo" || name == "proc/self/mounts" {
				return // any text is possible
			}
			require.ErrorContains(t, err, want)
		})
	}
	r := testReader(tree(t, host()), "x86_64")
	r.source = func(context.Context) (netip.Addr, error) { return netip.Addr{}, errors.New("no address") }
	_, err := r.read(t.Context())
	require.EqualError(t, err, "no address")
}

func TestReadThisHost(t *testing.T) {
	t.Parallel()
	got, err := Read(t.Context())
	require.NoError(t, err)
	require.Positive(t, got.CPUs)
	require.Positive(t, got.MemoryMB)
	require.True(t, got.DefaultIP.Is4())
	require.WithinDuration(t, time.Now(), got.BootTime, 20*365*24*time.Hour)
}

func TestCgroups(t *testing.T) {
	t.Parallel()
	const other = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /somewhere/sys/fs/cgroup cgroup2 rw 0 0\n"
	for mounts, want := range map[string]Layout{
		"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n":                                                              CgroupV2,
		other + "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n":                                                CgroupV1,
		other + "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n": CgroupHybrid,
		other + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n":                                              CgroupV2,
		other: CgroupNone,
	} {
		got, err := testReader(tree(t, map[string]string{"proc/self/mounts": mounts}), "").cgroups()
		require.NoError(t, err)
		require.Equal(t, want, got, mounts)
	}
}

func TestFormatUptime(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	load := []string{"0.00", "0.01", "0.05"}
	for _, tc := range []struct {
		up    time.Duration
		users int
		want  string
	}{
		{17 * time.Minute, 0, " 03:04:05 up 17 min,  0 user,  load average: 0.00, 0.01, 0.05"},
		{59 * time.Second, 1, " 03:04:05 up 0 min,  1 user,  load average: 0.00, 0.01, 0.05"},
		{2*time.Hour + 5*time.Minute, 2, " 03:04:05 up  2:05,  2 users,  load average: 0.00, 0.01, 0.05"},
		{24*time.Hour + 3*time.Minute, 12, " 03:04:05 up 1 day, 3 min, 12 users,  load average: 0.00, 0.01, 0.05"},
		{400*24*time.Hour + 23*time.Hour, 1, " 03:04:05 up 400 days, 23:00,  1 user,  load average: 0.00, 0.01, 0.05"},
	} {
		require.Equal(t, tc.want, formatUptime(now, tc.up, tc.users, load))
	}
}

func TestCanonicalArch(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"x86_64": "x86_64", "amd64": "x86_64", "i586": "i686", "aarch64": "aarch64", "ppc64le": "ppc64le"} {
		require.Equal(t, want, canonicalArch(in))
	}
}

func TestCPUJSON(t *testing.T) {
	t.Parallel()
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(CPU{Arch: "x86_64"}.JSON()), &got))
	want := map[string]any{
		"arch": "x86_64", "model": "", "vendor": "", "features": []any{},
		"topology": map[string]any{"cells": 0.0, "sockets": 0.0, "cores": 0.0, "threads": 0.0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cpu_info (-want +got):\n%s", diff)
	}
}

func TestUsersLongRecords(t *testing.T) {
	t.Parallel()
	root := tree(t, map[string]string{"run/utmp": string(utmp(utmpSizeLong, utmpUserProcess, 1, utmpUserProcess)) + "cut"})
	n, err := testReader(root, "").users("aarch64")
	require.NoError(t, err)
	require.Equal(t, 2, n)
}

func FuzzParseCPUList(f *testing.F) {
	for _, s := range []string{"0-3,8,10-11", "0", "", "3-1", "0-99999999", "-1", "a-b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cpus, err := parseCPUList(s)
		for i := 1; err == nil && i < len(cpus); i++ {
			if cpus[i] <= cpus[i-1] {
				t.Fatalf("%q: not ascending: %v", s, cpus)
			}
		}
	})
}
