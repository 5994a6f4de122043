//go:build functional

package ovs_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/ovs"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

// patience is what a plug may take on a machine that others use, too; it takes a part of a second.
const patience = 45 * time.Second

func plug(t *testing.T, p vif.Plugger, v vif.VIF, timeout time.Duration) (vif.Link, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return p.Plug(ctx, v)
}

func (o *openVSwitch) requireUnplugged(p vif.Plugger, v vif.VIF) {
	o.t.Helper()
	require.NoError(o.t, p.Unplug(o.t.Context(), v))
	left, err := o.left(v)
	require.NoError(o.t, err)
	require.Empty(o.t, left)
}

// TestServerRestart: a package upgrade takes ovsdb-server away for a while; plugs
// before, during and after it succeed.
func TestServerRestart(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	_, err := plug(t, p, port(1), patience)
	require.NoError(t, err)
	before, err := o.wired(port(1))
	require.NoError(t, err)

	o.stop(o.server)
	require.NoError(t, os.Remove(strings.TrimPrefix(o.endpoint, "unix:")))
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := plug(t, p, port(2), patience)
		if err != nil {
			t.Errorf("plug while the server is away: %v", err)
		}
	})
	time.Sleep(300 * time.Millisecond)
	o.startServer()
	wg.Wait()

	_, err = plug(t, p, port(1), patience)
	require.NoError(t, err)
	after, err := o.wired(port(1))
	require.NoError(t, err)
	require.Equal(t, before, after, "a healthy port is left alone")
	_, err = o.wired(port(2))
	require.NoError(t, err)
	o.requireUnplugged(p, port(1))
	o.requireUnplugged(p, port(2))
}

// TestServerHangs: a server that does not answer cannot hold a plug beyond its deadline.
func TestServerHangs(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	_, err := plug(t, p, port(1), patience)
	require.NoError(t, err)
	require.NoError(t, o.server.Process.Signal(syscall.SIGSTOP))
	start := time.Now()
	_, err = plug(t, p, port(2), time.Second)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, p.Unplug(ctx, port(2)), context.DeadlineExceeded)
	require.Less(t, time.Since(start), 20*time.Second)
	_, err = os.Stat("/sys/class/net/" + port(2).HostDevice())
	require.ErrorIs(t, err, os.ErrNotExist, "devices go even if the rows cannot")
	require.NoError(t, o.server.Process.Signal(syscall.SIGCONT))
	o.requireUnplugged(p, port(1))
	o.requireUnplugged(p, port(2))
}

// TestNoServer: the error names the option, and a host without OVS fails soon.
func TestNoServer(t *testing.T) {
	viftest.Need(t)
	nl, err := link.Open()
	require.NoError(t, err)
	defer nl.Close()
	p := ovs.New(nl, ovs.Options{Endpoints: []string{"unix:/nonexistent/db.sock"}, Timeout: 500 * time.Millisecond})
	_, err = p.Plug(t.Context(), port(1))
	require.ErrorContains(t, err, "[os_vif_ovs] ovsdb_connection")
	require.ErrorContains(t, err, "/nonexistent/db.sock")
	require.Error(t, p.Unplug(t.Context(), port(1)))
	_, err = os.Stat("/sys/class/net/" + port(1).HostDevice())
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestSwitchdAway: without vswitchd no port gets a number; the plug says so in time,
// and works again once it is back.
func TestSwitchdAway(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	o.stop(o.switchd)
	_, err := plug(t, p, port(1), 5*time.Second) // enough to come as far as that
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "wait for OVS port "+port(1).HostDevice())
	o.startSwitchd()
	_, err = plug(t, p, port(1), patience)
	require.NoError(t, err)
	_, err = o.wired(port(1))
	require.NoError(t, err)
	o.requireUnplugged(p, port(1))
}

// TestCannotOpen: vswitchd's own words reach the caller.
func TestCannotOpen(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	v := port(1)
	v.Details = map[string]any{"datapath_type": "system"} // vswitchd runs without it
	_, err := plug(t, p, v, time.Second)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	o.requireUnplugged(p, v)
}

// TestStaleRowsAfterReboot: rows outlive a reboot, devices do not.
func TestStaleRowsAfterReboot(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	for _, v := range []vif.VIF{port(1), hybridPort(2)} {
		_, err := plug(t, p, v, patience)
		require.NoError(t, err)
		before, err := o.wired(v)
		require.NoError(t, err)
		viftest.Command(t, "ip", "link", "delete", "dev", v.HostDevice())
		if ovsDevice(v) != v.HostDevice() {
			viftest.Command(t, "ip", "link", "delete", "dev", ovsDevice(v))
		}
		_, err = plug(t, p, v, patience)
		require.NoError(t, err)
		after, err := o.wired(v)
		require.NoError(t, err)
		require.NotEqual(t, before, after)
		o.requireUnplugged(p, v)
	}
}

// TestRowOfVanishedDevice: the row was made for a device that never came; the device of a
// plug that was interrupted is there.
func TestRowOfVanishedDevice(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	v := port(1)
	o.vsctl("--may-exist", "add-br", "br-int", "--", "set", "Bridge", "br-int", "datapath_type=netdev")
	o.vsctl("--no-wait", "add-port", "br-int", v.HostDevice())
	require.Eventually(t, func() bool {
		return o.vsctl("get", "Interface", v.HostDevice(), "ofport") == "-1"
	}, patience, 20*time.Millisecond)
	_, err := plug(t, p, v, patience)
	require.NoError(t, err)
	_, err = o.wired(v)
	require.NoError(t, err)
	o.requireUnplugged(p, v)
}

func TestForeignRowStays(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	v := port(1)
	o.vsctl("--may-exist", "add-br", "br-int", "--", "set", "Bridge", "br-int", "datapath_type=netdev")
	o.vsctl("--no-wait", "add-port", "br-int", v.HostDevice(), "--", "set", "Interface", v.HostDevice(), "external_ids:iface-id=another-port")
	_, err := plug(t, p, v, patience)
	require.ErrorIs(t, err, link.ErrForeign)
	require.NoError(t, p.Unplug(t.Context(), v))
	require.Equal(t, "br-int", o.vsctl("port-to-br", v.HostDevice()))
}

// TestHybridSettings: what os-vif writes for a bridge of one port.
func TestHybridSettings(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	v := hybridPort(1)
	v.MTU = 1400
	_, err := plug(t, p, v, patience)
	require.NoError(t, err)
	bridge := vif.HybridBridge(v.PortID)
	bridgeEnd, ovsEnd := vif.HybridPair(v.PortID)
	for path, want := range map[string]string{
		"/sys/class/net/" + bridge + "/bridge/ageing_time":        "0",
		"/sys/class/net/" + bridge + "/bridge/forward_delay":      "0",
		"/sys/class/net/" + bridge + "/bridge/stp_state":          "0",
		"/sys/class/net/" + bridge + "/bridge/multicast_snooping": "0",
		"/proc/sys/net/ipv6/conf/" + bridge + "/disable_ipv6":     "1",
		"/proc/sys/net/ipv4/conf/" + bridge + "/arp_ignore":       "1",
		"/proc/sys/net/ipv4/conf/" + bridge + "/arp_announce":     "2",
		"/sys/class/net/" + bridgeEnd + "/mtu":                    "1400",
		"/sys/class/net/" + ovsEnd + "/mtu":                       "1400",
	} {
		require.Equal(t, want, strings.TrimSpace(viftest.Command(t, "cat", path)), path)
	}
	for _, device := range []string{bridgeEnd, ovsEnd} {
		flags := viftest.Command(t, "ip", "link", "show", "dev", device)
		require.Contains(t, flags, "PROMISC")
		require.Contains(t, flags, ",UP")
	}
	for _, device := range []string{bridgeEnd, v.HostDevice()} {
		require.Contains(t, viftest.Command(t, "ip", "link", "show", "dev", device), "master "+bridge)
	}
	o.requireUnplugged(p, v)
}

// TestHybridAndBack: an operator changes the firewall driver of Neutron's agent.
func TestHybridAndBack(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	for _, v := range []vif.VIF{port(1), hybridPort(1), port(1)} {
		_, err := plug(t, p, v, patience)
		require.NoError(t, err)
		_, err = o.wired(v)
		require.NoError(t, err)
	}
	require.Empty(t, viftest.Command(t, "find", "/sys/class/net", "-name", "q??5eed*"))
	o.requireUnplugged(p, hybridPort(1))
}

// TestMovesToOtherBridge keeps the row.
func TestMovesToOtherBridge(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	v := port(1)
	_, err := plug(t, p, v, patience)
	require.NoError(t, err)
	v.Bridge = "br-other"
	_, err = plug(t, p, v, patience)
	require.NoError(t, err)
	_, err = o.wired(v)
	require.NoError(t, err)
	o.requireUnplugged(p, v)
	require.Equal(t, "br-int\nbr-other", o.vsctl("list-br"))
}

// TestTrunkBridge lives as long as its parent port.
func TestTrunkBridge(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{Isolate: true})
	v := port(1)
	v.Bridge = "tbr-12345678-9"
	_, err := plug(t, p, v, patience)
	require.NoError(t, err)
	require.Equal(t, "tbr-12345678-9", o.vsctl("get", "Interface", v.HostDevice(), "external_ids:bridge_name"))
	require.Equal(t, "[]", o.vsctl("get", "Port", v.HostDevice(), "tag"), "no dead VLAN on a trunk bridge")
	o.requireUnplugged(p, v)
	require.Empty(t, o.vsctl("list-br"))
}

// TestIsolate: only new ports start in the dead VLAN.
func TestIsolate(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{Isolate: true})
	v := port(1)
	_, err := plug(t, p, v, patience)
	require.NoError(t, err)
	require.Equal(t, "4095\n[4095]\ntrunk", o.vsctl("get", "Port", v.HostDevice(), "tag", "trunks", "vlan_mode"))
	o.vsctl("--no-wait", "set", "Port", v.HostDevice(), "tag=7", "--", "clear", "Port", v.HostDevice(), "trunks", "vlan_mode") // Neutron wires it
	_, err = plug(t, p, v, patience)
	require.NoError(t, err)
	require.Equal(t, "7", o.vsctl("get", "Port", v.HostDevice(), "tag"))
	o.requireUnplugged(p, v)
}

// TestQoSRow: the kernel's datapath is not on every machine, so vswitchd's part, the
// port's number, is played by the test.
func TestQoSRow(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{QoSType: ovs.DefaultQoSType})
	o.stop(o.switchd)
	v := port(1)
	v.Details = map[string]any{"datapath_type": "system"}
	for range 2 { // the second finds everything
		done := make(chan error, 1) // one answer
		go func() {
			_, err := plug(t, p, v, patience)
			done <- err
		}()
		require.Eventually(t, func() bool {
			select {
			case err := <-done:
				done <- err
				return true
			default:
			}
			if strings.Contains(o.vsctl("--no-headings", "--columns=name", "list", "Interface"), v.HostDevice()) {
				o.vsctl("--no-wait", "set", "Interface", v.HostDevice(), "ofport=5")
			}
			return false
		}, patience, 50*time.Millisecond)
		require.NoError(t, <-done)
		require.Equal(t, "linux-noop", o.vsctl("--no-headings", "--columns=type", "list", "QoS"))
		require.Equal(t, o.vsctl("--no-headings", "--columns=_uuid", "list", "QoS"), o.vsctl("get", "Port", v.HostDevice(), "qos"))
	}
	o.requireUnplugged(p, v)
}
