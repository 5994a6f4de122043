//go:build functional

package bridge_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/bridge"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

const networkID = "6e6574ab-cdef-4000-8000-000000000001"

func TestMain(m *testing.M) { os.Exit(viftest.Main(m)) }

func port(n int) vif.VIF {
	return vif.VIF{
		PortID: viftest.PortID(n), InstanceID: viftest.InstanceID(n), MAC: viftest.MAC(n),
		Type: "bridge", VNICType: "normal", NetworkID: networkID, CreateBridge: true,
	}
}

func newPlugger(t *testing.T) vif.Plugger {
	t.Helper()
	viftest.Need(t)
	nl, err := link.Open()
	require.NoError(t, err)
	t.Cleanup(nl.Close)
	return vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindBridge: bridge.New(nl), vif.KindTap: link.NewTap(nl)})
}

func master(device string) (string, error) {
	target, err := os.Readlink("/sys/class/net/" + device + "/master")
	return filepath.Base(target), err
}

func TestConformance(t *testing.T) {
	p := newPlugger(t)
	viftest.Run(t, viftest.Env{
		Plugger: p,
		VIF:     port,
		Wired: func(v vif.VIF) (string, error) {
			m, err := master(v.HostDevice())
			if err == nil && m != "brq6e6574ab-cd" {
				err = errors.New("wrong bridge " + m)
			}
			return m, err
		},
		Left: func(vif.VIF) ([]string, error) { return nil, nil },
	})
}

func TestTapConformance(t *testing.T) {
	p := newPlugger(t)
	viftest.Run(t, viftest.Env{
		Plugger:   p,
		VIF:       func(n int) vif.VIF { v := port(n); v.Type = "tap"; return v },
		Wired:     func(v vif.VIF) (string, error) { _, err := os.Stat("/sys/class/net/" + v.HostDevice()); return "", err },
		Left:      func(vif.VIF) ([]string, error) { return nil, nil },
		NoTraffic: true,
	})
}

func TestBridgeSettings(t *testing.T) {
	p := newPlugger(t)
	v := port(1)
	v.Bridge = "brqsettings"
	_, err := p.Plug(t.Context(), v)
	require.NoError(t, err)
	t.Cleanup(func() {
		viftest.Command(t, "ip", "link", "delete", "dev", v.Bridge)
	})
	read := func(path string) string { return viftest.Command(t, "cat", path) }
	for path, want := range map[string]string{
		"/sys/class/net/brqsettings/bridge/forward_delay":      "0\n",
		"/sys/class/net/brqsettings/bridge/stp_state":          "0\n",
		"/sys/class/net/brqsettings/bridge/multicast_snooping": "0\n",
		"/sys/class/net/brqsettings/bridge/ageing_time":        "30000\n", // the kernel's: zero would flood
		"/proc/sys/net/ipv6/conf/brqsettings/disable_ipv6":     "1\n",
		"/proc/sys/net/ipv4/conf/brqsettings/arp_ignore":       "1\n",
		"/proc/sys/net/ipv4/conf/brqsettings/arp_announce":     "2\n",
	} {
		require.Equal(t, want, read(path), path)
	}

	viftest.Command(t, "ip", "link", "set", "dev", v.Bridge, "type", "bridge", "forward_delay", "200")
	_, err = p.Plug(t.Context(), v)
	require.NoError(t, err)
	require.Equal(t, "200\n", read("/sys/class/net/brqsettings/bridge/forward_delay"), "a bridge that exists keeps its settings")
	require.NoError(t, p.Unplug(t.Context(), v))
	_, err = os.Stat("/sys/class/net/" + v.Bridge)
	require.NoError(t, err, "the bridge is Neutron's")
}

func TestBridgeMustExist(t *testing.T) {
	p := newPlugger(t)
	v := port(1)
	v.Bridge, v.CreateBridge = "brqmissing", false
	_, err := p.Plug(t.Context(), v)
	require.ErrorContains(t, err, "use bridge brqmissing: it does not exist")
	require.NoError(t, p.Unplug(t.Context(), v))
}

func TestNotABridge(t *testing.T) {
	p := newPlugger(t)
	v := port(1)
	v.Bridge = "lo"
	_, err := p.Plug(t.Context(), v)
	require.ErrorIs(t, err, link.ErrForeign)
	v.Bridge = "../../all"
	_, err = p.Plug(t.Context(), v)
	require.ErrorContains(t, err, "invalid device name")
}

// TestUnboundStillLosesItsPair: Neutron may have unbound a port by the time it is unplugged.
func TestUnboundStillLosesItsPair(t *testing.T) {
	p := newPlugger(t)
	v := port(1)
	_, err := p.Plug(t.Context(), v)
	require.NoError(t, err)
	v.Type = "unbound"
	require.NoError(t, p.Unplug(t.Context(), v))
	_, err = os.Stat("/sys/class/net/" + v.HostDevice())
	require.ErrorIs(t, err, os.ErrNotExist)
}
