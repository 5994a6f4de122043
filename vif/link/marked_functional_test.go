//go:build functional

package link_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

func TestMain(m *testing.M) { os.Exit(viftest.Main(m)) }

func open(t *testing.T) *link.Netlink {
	t.Helper()
	viftest.Need(t)
	nl, err := link.Open()
	require.NoError(t, err)
	t.Cleanup(nl.Close)
	return nl
}

func port(n int) vif.VIF {
	return vif.VIF{PortID: viftest.PortID(n), InstanceID: viftest.InstanceID(n), MAC: viftest.MAC(n), Type: "tap", VNICType: "normal"}
}

func exists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

func found(t *testing.T, f vif.Finder) []vif.Marked {
	t.Helper()
	marked, err := f.Marked(t.Context())
	require.NoError(t, err)
	return marked
}

// TestFinder: a pair is found by its mark whoever made it, and goes unless a guest has its other end.
func TestFinder(t *testing.T) {
	nl := open(t)
	f, taps := link.NewFinder(nl), link.NewTap(nl)
	require.Empty(t, found(t, f))
	v := port(1)
	plugged, err := taps.Plug(t.Context(), v)
	require.NoError(t, err)
	tap := vif.Marked{Instance: v.InstanceID, What: vif.MarkedDevice, Name: v.HostDevice()}
	require.Equal(t, []vif.Marked{tap}, found(t, f))

	guest := viftest.NewGuest(t)
	guest.Take(plugged.Peer, "")
	held := tap
	held.InUse = true
	require.Equal(t, []vif.Marked{held}, found(t, f))
	require.ErrorIs(t, f.RemoveMarked(t.Context(), tap), vif.ErrInUse)
	require.True(t, exists(tap.Name))
	guest.Return("eth0", plugged.Peer)
	require.Equal(t, []vif.Marked{tap}, found(t, f))

	for name, m := range map[string]vif.Marked{
		"of another instance": {Instance: viftest.InstanceID(2), What: vif.MarkedDevice, Name: tap.Name},
		"of another kind":     {Instance: tap.Instance, What: vif.MarkedOVSPort, Name: tap.Name},
		"of nobody":           {What: vif.MarkedDevice, Name: tap.Name},
		"the other end":       {Instance: tap.Instance, What: vif.MarkedDevice, Name: plugged.Peer},
	} {
		require.NoError(t, f.RemoveMarked(t.Context(), m), name)
		require.True(t, exists(tap.Name), name)
	}
	require.NoError(t, f.RemoveMarked(t.Context(), tap))
	require.False(t, exists(tap.Name))
	require.False(t, exists(plugged.Peer))
	require.NoError(t, f.RemoveMarked(t.Context(), tap), "again")
	require.Empty(t, found(t, f))
}

// TestFinderLeavesOthers: what bears no mark, or a text that is none, or is nothing that plugging makes, is neither found nor removed.
func TestFinderLeavesOthers(t *testing.T) {
	f := link.NewFinder(open(t))
	for name, args := range map[string]string{
		"plain": "type veth peer name plainpeer", "described": "type veth peer name describedpeer", "joined": "type bridge",
	} {
		viftest.Command(t, append([]string{"ip", "link", "add", name}, strings.Fields(args)...)...)
		t.Cleanup(func() { viftest.Command(t, "ip", "link", "delete", name) })
	}
	viftest.Command(t, "ip", "link", "set", "described", "alias", "to the switch in rack 3, port number 17")
	viftest.Command(t, "ip", "tuntap", "add", "dev", "marked", "mode", "tap")
	t.Cleanup(func() { viftest.Command(t, "ip", "tuntap", "delete", "dev", "marked", "mode", "tap") })
	viftest.Command(t, "ip", "link", "set", "marked", "alias", viftest.InstanceID(1))
	require.Empty(t, found(t, f))
	for _, name := range []string{"plain", "plainpeer", "described", "marked", "joined", "lo"} {
		require.NoError(t, f.RemoveMarked(t.Context(), vif.Marked{Instance: viftest.InstanceID(1), What: vif.MarkedDevice, Name: name}))
		require.NoError(t, f.RemoveMarked(t.Context(), vif.Marked{What: vif.MarkedDevice, Name: name}))
		require.True(t, exists(name))
	}
	require.Error(t, f.RemoveMarked(t.Context(), vif.Marked{Instance: viftest.InstanceID(1), What: vif.MarkedDevice, Name: "../lo"}))
}

// TestFinderManyDevices: a host full of servers is looked through in a moment.
func TestFinderManyDevices(t *testing.T) {
	f := link.NewFinder(open(t))
	const pairs = 250
	var add, remove strings.Builder
	for n := range pairs {
		fmt.Fprintf(&add, "link add many%d type veth peer name ynam%d\nlink set many%d alias %s\n", n, n, n, viftest.InstanceID(n))
		fmt.Fprintf(&remove, "link delete many%d\n", n)
	}
	batch := func(commands string) {
		file := filepath.Join(t.TempDir(), "batch")
		require.NoError(t, os.WriteFile(file, []byte(commands), 0o600))
		viftest.Command(t, "ip", "-batch", file)
	}
	batch(add.String())
	start := time.Now()
	require.Len(t, found(t, f), pairs)
	t.Logf("%d devices looked through in %v", 2*pairs, time.Since(start).Round(100*time.Microsecond))
	batch(remove.String())
	require.Empty(t, found(t, f))
}
