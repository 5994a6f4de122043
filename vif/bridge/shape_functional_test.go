//go:build functional

package bridge_test

import (
	"io"
	"net"
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

// send transfers as many bytes from one guest to another and returns the rate in kB/s.
func send(t *testing.T, from, to *viftest.Guest, address string, bytes int) float64 {
	t.Helper()
	var listener net.Listener
	require.NoError(t, to.Run(func() (err error) {
		listener, err = net.Listen("tcp", address+":0")
		return err
	}))
	defer listener.Close()
	took := make(chan time.Duration, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			close(took)
			return
		}
		began := time.Now()
		_, _ = io.Copy(io.Discard, conn)
		took <- time.Since(began)
	}()
	var conn net.Conn
	require.NoError(t, from.Run(func() (err error) {
		conn, err = net.DialTimeout("tcp", listener.Addr().String(), 30*time.Second)
		return err
	}))
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err := conn.Write(make([]byte, bytes))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	rate := float64(bytes) / 1000 / (<-took).Seconds()
	t.Logf("%d kB at %.0f kB/s", bytes/1000, rate)
	return rate
}

// requireRate requires that transfers keep to a rate in kB/s: none is faster, and not all are slower, as whatever else the machine does
// makes one.
func requireRate(t *testing.T, want float64, from, to *viftest.Guest, address string, bytes int) {
	t.Helper()
	const deviation = 0.25
	best := 0.0
	for try := 0; try < 3 && best < want*(1-deviation); try++ {
		best = max(best, send(t, from, to, address, bytes))
	}
	require.InEpsilon(t, want, best, deviation, "to %s", address)
}

// requireFast requires that one of several transfers is faster than a rate in kB/s.
func requireFast(t *testing.T, than float64, from, to *viftest.Guest, address string, bytes int) {
	t.Helper()
	best := 0.0
	for try := 0; try < 3 && best <= than; try++ {
		best = max(best, send(t, from, to, address, bytes))
	}
	require.Greater(t, best, than, "to %s", address)
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
	requireRate(t, 2000, b, a, "192.0.2.1", 4_000_000)
	requireRate(t, 1000, a, b, "192.0.2.2", 2_000_000)

	_, err := p.Plug(t.Context(), limited)
	require.NoError(t, err, "again")
	before := viftest.Command(t, "tc", "filter", "show", "dev", limited.HostDevice(), "parent", "ffff:")
	limited.Bandwidth = vif.Bandwidth{In: vif.Rate{Average: 8000}, Out: vif.Rate{Average: 4000, Peak: 8000, Burst: 128}} // as after a resize
	_, err = p.Plug(t.Context(), limited)
	require.NoError(t, err)
	require.Equal(t, before, viftest.Command(t, "tc", "filter", "show", "dev", limited.HostDevice(), "parent", "ffff:"))
	requireRate(t, 8000, b, a, "192.0.2.1", 8_000_000)
	requireRate(t, 4000, a, b, "192.0.2.2", 6_000_000)

	limited.Bandwidth = vif.Bandwidth{}
	_, err = p.Plug(t.Context(), limited)
	require.NoError(t, err)
	requireFast(t, 16000, b, a, "192.0.2.1", 40_000_000)
	requireFast(t, 16000, a, b, "192.0.2.2", 40_000_000)
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
