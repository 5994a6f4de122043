//go:build functional

package ovs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/ovs"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

func TestMain(m *testing.M) {
	os.Exit(viftest.Main(m))
}

// schema is where the distributions install it.
const schema = "/usr/share/openvswitch/vswitch.ovsschema"

// openVSwitch is a private ovsdb-server with a vswitchd that has the userspace
// datapath only, unless it is to have the kernel's, in the test's network namespace.
type openVSwitch struct {
	t        *testing.T
	kernel   bool
	dir      string
	endpoint string
	server   *exec.Cmd
	switchd  *exec.Cmd
}

func startOVS(t *testing.T) *openVSwitch {
	t.Helper()
	return startDatapath(t, false)
}

// startKernelOVS starts one on the datapath that hypervisors have, where the kernel has it.
func startKernelOVS(t *testing.T) *openVSwitch {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "modprobe", "openvswitch").CombinedOutput(); err != nil {
		t.Skipf("needs the kernel module openvswitch, which few kernels of test machines have: %s", out)
	}
	return startDatapath(t, true)
}

func startDatapath(t *testing.T, kernel bool) *openVSwitch {
	t.Helper()
	viftest.Need(t, "ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl")
	dir, err := os.MkdirTemp("", "ovs") //nolint:usetesting // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	o := &openVSwitch{t: t, kernel: kernel, dir: dir, endpoint: "unix:" + filepath.Join(dir, "db.sock")}
	viftest.Command(t, "ovsdb-tool", "create", filepath.Join(dir, "conf.db"), schema)
	o.startServer()
	o.vsctl("--no-wait", "init")
	o.startSwitchd()
	t.Cleanup(func() {
		o.stop(o.switchd)
		o.stop(o.server)
	})
	return o
}

func (o *openVSwitch) startServer() {
	o.server = o.start("ovsdb-server", filepath.Join(o.dir, "conf.db"), "--remote=p"+o.endpoint, "--unixctl="+filepath.Join(o.dir, "db.ctl"))
	require.Eventually(o.t, func() bool {
		return exec.CommandContext(o.t.Context(), "ovs-vsctl", "--db="+o.endpoint, "--timeout=1", "--no-wait", "show").Run() == nil
	}, patience, 20*time.Millisecond, "ovsdb-server answers")
}

func (o *openVSwitch) startSwitchd() {
	args := []string{"ovs-vswitchd", o.endpoint, "--unixctl=" + filepath.Join(o.dir, "switchd.ctl")}
	if !o.kernel {
		args = append(args, "--disable-system")
	}
	o.switchd = o.start(args...)
}

// start runs a daemon in the foreground, with its files and its log in the private directory.
func (o *openVSwitch) start(args ...string) *exec.Cmd {
	o.t.Helper()
	logFile, err := os.OpenFile(filepath.Join(o.dir, args[0]+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(o.t, err)
	defer logFile.Close()
	cmd := exec.Command(args[0], args[1:]...) // stopped below
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_DBDIR="+o.dir)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	require.NoError(o.t, cmd.Start())
	return cmd
}

func (o *openVSwitch) stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // killed
}

// vsctl is what ovs-vsctl says on its standard output: on the other one it warns when it was slow.
func (o *openVSwitch) vsctl(args ...string) string {
	o.t.Helper()
	out, err := o.tryVsctl(args...)
	require.NoError(o.t, err, "ovs-vsctl %v", args)
	return out
}

func (o *openVSwitch) tryVsctl(args ...string) (string, error) {
	args = append([]string{"--db=" + o.endpoint, "--timeout=45"}, args...)
	out, err := exec.CommandContext(context.Background(), "ovs-vsctl", args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

func (o *openVSwitch) plugger(t *testing.T, opts ovs.Options) vif.Plugger {
	t.Helper()
	nl, err := link.Open()
	require.NoError(t, err)
	t.Cleanup(nl.Close)
	opts.Endpoints = []string{"unix:" + filepath.Join(o.dir, "missing.sock"), o.endpoint}
	p := ovs.New(nl, opts)
	t.Cleanup(p.Close)
	return vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindOVS: p, vif.KindOVSHybrid: p, vif.KindTap: link.NewTap(nl)}).
		ShapeWith(link.NewShaper(nl)).FindWith(p, link.NewFinder(nl))
}

func port(n int) vif.VIF {
	return vif.VIF{
		PortID: viftest.PortID(n), InstanceID: viftest.InstanceID(n), MAC: viftest.MAC(n),
		Type: "ovs", VNICType: "normal", Bridge: "br-int",
		Details: map[string]any{"datapath_type": "netdev", "port_filter": true, "ovs_hybrid_plug": false},
	}
}

func hybridPort(n int) vif.VIF {
	v := port(n)
	v.Details = map[string]any{"datapath_type": "netdev", "ovs_hybrid_plug": true}
	return v
}

// ovsDevice is the device of a port that is in OVS.
func ovsDevice(v vif.VIF) string {
	if kind, _ := v.Kind(); kind == vif.KindOVSHybrid {
		_, end := vif.HybridPair(v.PortID)
		return end
	}
	return v.HostDevice()
}

// wired checks the rows of a port and returns their identity.
func (o *openVSwitch) wired(v vif.VIF) (string, error) {
	get := o.tryVsctl
	device := ovsDevice(v)
	br, err := get("port-to-br", device)
	if err != nil || br != v.Bridge {
		return "", fmt.Errorf("port %s is on bridge %q: %w", device, br, err)
	}
	for key, want := range map[string]string{
		"iface-id": v.PortID, "iface-status": "active", "attached-mac": v.MAC, "vm-uuid": v.InstanceID,
	} {
		got, err := get("get", "Interface", device, "external_ids:"+key)
		if err != nil || strings.Trim(got, `"`) != want {
			return "", fmt.Errorf("external id %s of %s is %q: %w", key, device, got, err)
		}
	}
	id, err := get("get", "Interface", device, "_uuid", "ofport", "error")
	if err == nil && strings.Contains(id, "-1") && strings.Contains(id, "could not") {
		err = fmt.Errorf("port %s is not open: %s", device, id)
	}
	return id, err
}

func (o *openVSwitch) left(v vif.VIF) ([]string, error) {
	var left []string
	out := o.vsctl("--columns=name", "--no-headings", "find", "Interface", "external_ids:iface-id="+v.PortID)
	if out != "" {
		left = append(left, out)
	}
	out = o.vsctl("--columns=_uuid", "--no-headings", "--format=csv", "list", "QoS")
	ports := o.vsctl("--columns=qos", "--no-headings", "--format=csv", "list", "Port") // of other ports
	out = strings.Join(slices.DeleteFunc(strings.Fields(out), func(row string) bool { return strings.Contains(ports, row) }), " ")
	if out != "" {
		left = append(left, "QoS "+out)
	}
	bridgeEnd, ovsEnd := vif.HybridPair(v.PortID)
	for _, device := range []string{bridgeEnd, ovsEnd, vif.HybridBridge(v.PortID)} {
		if _, err := os.Stat("/sys/class/net/" + device); err == nil {
			left = append(left, device)
		}
	}
	return left, nil
}

func TestConformance(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{QoSType: ovs.DefaultQoSType})
	t.Run("plain", func(t *testing.T) {
		viftest.Run(t, viftest.Env{Plugger: p, VIF: port, Wired: o.wired, Left: o.left})
	})
	t.Run("hybrid", func(t *testing.T) {
		viftest.Run(t, viftest.Env{Plugger: p, VIF: hybridPort, Wired: o.wired, Left: o.left})
	})
}

// TestConformanceKernel is the same on the datapath that hypervisors have, where the kernel has it.
func TestConformanceKernel(t *testing.T) {
	o := startKernelOVS(t)
	p := o.plugger(t, ovs.Options{QoSType: ovs.DefaultQoSType})
	system := func(port func(int) vif.VIF) func(int) vif.VIF {
		return func(n int) vif.VIF {
			v := port(n)
			v.Details["datapath_type"] = "system"
			return v
		}
	}
	t.Run("plain", func(t *testing.T) {
		viftest.Run(t, viftest.Env{Plugger: p, VIF: system(port), Wired: o.wired, Left: o.left})
	})
	t.Run("hybrid", func(t *testing.T) {
		viftest.Run(t, viftest.Env{Plugger: p, VIF: system(hybridPort), Wired: o.wired, Left: o.left})
	})
}
