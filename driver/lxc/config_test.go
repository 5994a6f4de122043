package lxc

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/vif"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func testPlan() plan {
	return plan{
		record: record{
			RootFS: "/var/lib/agent/instances/uuid/root",
			Spec: driver.Spec{
				UUID: "4e5c0d4a-6a5b-4a5e-9d3c-0a3b6f1d2c11", Name: "instance-0000002a", Hostname: "web1", Arch: "x86_64",
				IDs: storage.IDRange{Base: 1000000, Size: 65536},
				Limits: flavor.Limits{
					CPUPeriodUS: 100000, CPUQuotaUS: 200000, CPUShares: 2048, MemoryBytes: 1 << 30, PIDs: 4096,
				},
			},
		},
		init: initSystemd, swapAccount: true, seccomp: "/var/lib/agent/seccomp.policy",
		console: "/var/log/agent/instance-0000002a/console.log", consoleBytes: 1 << 19,
		preStart: "/var/lib/agent/lxc/instance-0000002a/pre-start",
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*plan){
		"hybrid": func(p *plan) {
			p.layout = layoutHybrid
			p.NICs = []driver.NIC{
				{PortID: "a", Name: "eth0", Link: vif.Link{Host: "tapa", Peer: "tina", MAC: "fa:16:3e:00:00:01", MTU: 1450}},
				{PortID: "b", Name: "eth1", Link: vif.Link{Host: "tapb", Peer: "tinb"}},
			}
		},
		"v2-everything": func(p *plan) {
			p.layout = layoutV2
			p.Spec.Limits.SwapBytes = 1 << 29
			p.Spec.Limits.CPUSet = "2-3"
			p.Spec.Limits.Nested = true
			p.Spec.Limits.Disk = flavor.DiskLimits{ReadIOPSSec: 100, TotalBytesSec: 1 << 20}
			p.Spec.Env = map[string]string{"product_name": "OpenStack Compute", "X": "a b=c"}
			p.devices = []storage.Device{{Number: "8:0"}, {Number: "7:1", Own: true}}
			p.Spec.Binds = []driver.Bind{
				{Source: "/var/lib/agent/configdrive/uuid/mount", Target: "config-drive", ReadOnly: true}, {Source: "/pool/e0", Target: "mnt"},
			}
			p.appArmor, p.lxcfs, p.idmapRootFS = ModeGenerated, "/var/lib/lxcfs", true
			p.init = initBusybox
		},
		"v1-privileged": func(p *plan) {
			p.layout, p.swapAccount = layoutV1, false
			p.Spec.Limits.Privileged = true
			p.Spec.Limits.Disk = flavor.DiskLimits{WriteBytesSec: 1 << 20, WriteIOPSSec: 50}
			p.devices, p.appArmor = []storage.Device{{Number: "7:3", Own: true}}, ModeUnconfined
			p.Spec.Hostname, p.Spec.Arch = "", ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := testPlan()
			change(&p)
			got, golden := p.render(), filepath.Join("testdata", name+".conf")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(string(want), got))
		})
	}
}

// Whatever an instance looks like, it never gets the host's network namespace.
func TestRenderNeverSharesTheNetwork(t *testing.T) {
	t.Parallel()
	for _, nics := range [][]driver.NIC{nil, {}, {{Name: "eth0", Link: vif.Link{Peer: "tin0"}}}} {
		p := testPlan()
		p.NICs = nics
		conf := p.render()
		require.Contains(t, conf, "lxc.net.0.type = ")
		require.NotContains(t, conf, "type = none")
		require.NotContains(t, conf, "lxc.namespace")
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	d := &Driver{}
	good := testPlan().Spec
	require.NoError(t, d.validate(good, "/root"))
	for name, change := range map[string]func(*driver.Spec){
		"uuid leaves the directory":  func(s *driver.Spec) { s.UUID = "../x" },
		"name leaves the directory":  func(s *driver.Spec) { s.Name = "a/b" },
		"name is hidden":             func(s *driver.Spec) { s.Name = ".x" },
		"name is too long":           func(s *driver.Spec) { s.Name = strings.Repeat("x", 64) },
		"host name with a line":      func(s *driver.Spec) { s.Hostname = "a\nlxc.net.0.type = none" },
		"environment with a line":    func(s *driver.Spec) { s.Env = map[string]string{"A": "b\nlxc.cap.keep = all"} },
		"environment with a name":    func(s *driver.Spec) { s.Env = map[string]string{"A B": "c"} },
		"cpu set":                    func(s *driver.Spec) { s.Limits.CPUSet = "0\n1" },
		"architecture":               func(s *driver.Spec) { s.Arch = "x86 64" },
		"no ids":                     func(s *driver.Spec) { s.IDs = storage.IDRange{} },
		"ids of the host":            func(s *driver.Spec) { s.IDs.Base = 0 },
		"ids overflow":               func(s *driver.Spec) { s.IDs.Base = 1<<32 - 10 },
		"privileged without consent": func(s *driver.Spec) { s.Limits.Privileged = true },
	} {
		s := good
		change(&s)
		require.Error(t, d.validate(s, "/root"), name)
	}
	for _, rootfs := range []string{"", "root", "/a/../b", "/a b", "/a:b", "/a\nb"} {
		require.Error(t, d.validate(good, rootfs), rootfs)
	}
	s := good
	s.Limits.Privileged = true
	require.ErrorIs(t, d.validate(s, "/root"), driver.ErrUnsupported)
	require.NoError(t, (&Driver{o: Options{AllowPrivileged: true}}).validate(s, "/root"))
}

func TestValidateNICs(t *testing.T) {
	t.Parallel()
	for _, nic := range []driver.NIC{
		{Name: "eth0\n", Link: vif.Link{Peer: "lo"}},
		{Name: "eth0", Link: vif.Link{Peer: ""}},
		{Name: "eth0", Link: vif.Link{Peer: "../../block"}},
		{Name: "eth0", Link: vif.Link{Peer: "no-such-device"}},
		{Name: "eth0", Link: vif.Link{Peer: "lo", MAC: "fa:16"}},
	} {
		require.Error(t, validateNICs([]driver.NIC{nic}))
	}
	require.NoError(t, validateNICs([]driver.NIC{{Name: "eth0", Link: vif.Link{Peer: "lo", MAC: "fa:16:3e:00:00:01"}}}))
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := Options{StateDir: "/s", LogDir: "/l"}
	require.NoError(t, good.complete())
	require.Equal(t, Options{
		StateDir: "/s", LXCPath: "/s/lxc", LogDir: "/l", ConsoleSize: 1 << 20,
		AppArmor: ModeAuto, LXCFS: ModeAuto, LXCFSMount: "/var/lib/lxcfs", Executable: "/proc/self/exe",
	}, good)
	for _, bad := range []Options{
		{LogDir: "/l"},
		{StateDir: "s", LogDir: "/l"},
		{StateDir: "/s", LogDir: "/l x"},
		{StateDir: "/s", LogDir: "/l", SeccompProfile: "x"},
		{StateDir: "/s", LogDir: "/l", LXCFS: "yes"},
		{StateDir: "/s", LogDir: "/l", LXCFSMount: "lxcfs"},
		{StateDir: "/s", LogDir: "/l", AppArmor: "a b"},
	} {
		require.Error(t, bad.complete())
	}
}

func TestConsoleFileSize(t *testing.T) {
	t.Parallel()
	for bound, want := range map[int64]int64{1: 4096, 8192: 4096, 16 << 10: 8 << 10, 300000: 131072, 1 << 20: 1 << 19} {
		require.Equal(t, want, consoleFileSize(bound))
	}
}
