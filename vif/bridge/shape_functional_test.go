//go:build functional

package bridge_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/bridge"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

func newShaped(t *testing.T) vif.Plugger {
	t.Helper()
	viftest.Need(t, "tc")
	nl, err := link.Open()
	require.NoError(t, err)
	t.Cleanup(nl.Close)
	return vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindBridge: bridge.New(nl), vif.KindTap: link.NewTap(nl)}).ShapeWith(link.NewShaper(nl))
}

// TestBandwidth: each direction keeps to its own rate; without limits, and after they are taken away, there is none.
func TestBandwidth(t *testing.T) {
	p := newShaped(t)
	limited, other := port(61), port(62)
	limited.Bandwidth = vif.Bandwidth{In: vif.Rate{Average: 2000, Burst: 64}, Out: vif.Rate{Average: 1000, Burst: 64}}
	a, b := viftest.NewGuest(t), viftest.NewGuest(t)
	for i, v := range []vif.VIF{limited, other} {
		l, err := p.Plug(t.Context(), v)
		require.NoError(t, err)
		[]*viftest.Guest{a, b}[i].Take(l.Peer, []string{"192.0.2.1/24", "192.0.2.2/24"}[i])
	}
	viftest.RequireRate(t, 2000, b, a, "192.0.2.1", 4_000_000)
	viftest.RequireRate(t, 1000, a, b, "192.0.2.2", 2_000_000)

	_, err := p.Plug(t.Context(), limited)
	require.NoError(t, err, "again")
	before := viftest.Command(t, "tc", "filter", "show", "dev", limited.HostDevice(), "parent", "ffff:")
	limited.Bandwidth = vif.Bandwidth{In: vif.Rate{Average: 8000}, Out: vif.Rate{Average: 4000, Peak: 8000, Burst: 128}} // as after a resize
	_, err = p.Plug(t.Context(), limited)
	require.NoError(t, err)
	require.Equal(t, before, viftest.Command(t, "tc", "filter", "show", "dev", limited.HostDevice(), "parent", "ffff:"))
	viftest.RequireRate(t, 8000, b, a, "192.0.2.1", 8_000_000)
	viftest.RequireRate(t, 4000, a, b, "192.0.2.2", 6_000_000)

	limited.Bandwidth = vif.Bandwidth{}
	_, err = p.Plug(t.Context(), limited)
	require.NoError(t, err)
	viftest.RequireFast(t, 16000, b, a, "192.0.2.1", 40_000_000)
	viftest.RequireFast(t, 16000, a, b, "192.0.2.2", 40_000_000)
	require.NoFileExists(t, "/sys/class/net/"+vif.ShapeName(limited.PortID))
	require.NotContains(t, viftest.Command(t, "tc", "qdisc", "show", "dev", limited.HostDevice()), "htb")
	require.NotContains(t, viftest.Command(t, "tc", "qdisc", "show", "dev", limited.HostDevice()), "ingress")
	for _, v := range []vif.VIF{limited, other} {
		require.NoError(t, p.Unplug(t.Context(), v))
	}
}

// TestBandwidthIsUnplugged: nothing stays, whether the guest is there or not.
func TestBandwidthIsUnplugged(t *testing.T) {
	p := newShaped(t)
	v := port(63)
	v.Bandwidth = vif.Bandwidth{Out: vif.Rate{Average: 1000}}
	for _, dies := range []bool{false, true} {
		l, err := p.Plug(t.Context(), v)
		require.NoError(t, err)
		require.FileExists(t, "/sys/class/net/"+vif.ShapeName(v.PortID)+"/uevent")
		if dies {
			g := viftest.NewGuest(t)
			g.Take(l.Peer, "")
			g.Kill()
			require.Eventually(t, func() bool {
				_, err := os.Lstat("/sys/class/net/" + v.HostDevice())
				return os.IsNotExist(err)
			}, time.Minute, 10*time.Millisecond)
			_, err := p.Plug(t.Context(), v) // a new pair, led to the device that is still there
			require.NoError(t, err)
			require.Contains(t, viftest.Command(t, "tc", "filter", "show", "dev", v.HostDevice(), "parent", "ffff:"), vif.ShapeName(v.PortID))
		}
		require.NoError(t, p.Unplug(t.Context(), v))
		require.NoError(t, p.Unplug(t.Context(), v), "repeated")
		require.NoFileExists(t, "/sys/class/net/"+vif.ShapeName(v.PortID))
		require.NoFileExists(t, "/sys/class/net/"+v.HostDevice())
	}
}

// TestBandwidthGivesWay: what Neutron's agent puts on a port stays.
func TestBandwidthGivesWay(t *testing.T) {
	p := newShaped(t)
	v := port(64)
	_, err := p.Plug(t.Context(), v)
	require.NoError(t, err)
	viftest.Command(t, "tc", "qdisc", "replace", "dev", v.HostDevice(), "root", "tbf", "rate", "1mbit", "latency", "50ms", "burst", "10k")
	viftest.Command(t, "tc", "qdisc", "add", "dev", v.HostDevice(), "ingress")
	viftest.Command(t, "tc", "filter", "add", "dev", v.HostDevice(), "parent", "ffff:", "prio", "49", "protocol", "all", "u32", "match", "u32", "0", "0", "flowid", ":1")
	show := func() string {
		return viftest.Command(t, "tc", "qdisc", "show", "dev", v.HostDevice()) + viftest.Command(t, "tc", "filter", "show", "dev", v.HostDevice(), "parent", "ffff:")
	}
	before := show()
	require.Contains(t, before, "tbf")
	v.Bandwidth = vif.Bandwidth{In: vif.Rate{Average: 1000}, Out: vif.Rate{Average: 1000}}
	_, err = p.Plug(t.Context(), v)
	require.NoError(t, err)
	require.Equal(t, before, show())
	require.NoFileExists(t, "/sys/class/net/"+vif.ShapeName(v.PortID))
	require.NotContains(t, show(), "mirred")
	require.NoError(t, p.Unplug(t.Context(), v))
}
