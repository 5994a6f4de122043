//go:build functional

package bridge_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/bridge"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

// TestFindMarked: of a port on a Linux bridge the pair and the device of its bandwidth limit are found without a record; the bridge is Neutron's.
func TestFindMarked(t *testing.T) {
	viftest.Need(t, "tc")
	nl, err := link.Open()
	require.NoError(t, err)
	t.Cleanup(nl.Close)
	set := vif.NewSet(map[vif.Kind]vif.Plugger{vif.KindBridge: bridge.New(nl)}).ShapeWith(link.NewShaper(nl)).FindWith(link.NewFinder(nl))
	lost, other := port(1), port(2)
	lost.Bandwidth.Out.Average = 1000
	for _, v := range []vif.VIF{lost, other} {
		_, err := set.Plug(t.Context(), v)
		require.NoError(t, err)
	}
	t.Cleanup(func() { viftest.Command(t, "ip", "link", "delete", lost.LinuxBridge()) })
	var devices []string
	marked, err := set.Marked(t.Context())
	require.NoError(t, err)
	for _, m := range marked {
		if m.Instance != lost.InstanceID {
			continue
		}
		require.False(t, m.InUse)
		devices = append(devices, m.Name)
		require.NoError(t, set.RemoveMarked(t.Context(), m))
	}
	require.ElementsMatch(t, []string{lost.HostDevice(), vif.ShapeName(lost.PortID)}, devices)
	marked, err = set.Marked(t.Context())
	require.NoError(t, err)
	require.Equal(t, []vif.Marked{{Instance: other.InstanceID, What: vif.MarkedDevice, Name: other.HostDevice()}}, marked)
	_, err = master(other.HostDevice())
	require.NoError(t, err, "the bridge stays, and the other port in it")
	require.NoError(t, set.Unplug(t.Context(), lost), "as if nothing had been plugged")
	require.NoError(t, set.Unplug(t.Context(), other))
}
