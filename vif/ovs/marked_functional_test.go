//go:build functional

package ovs_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
	"github.com/compute-agent/compute-agent/vif/ovs"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

// finder is a plugger that finds what it has plugged.
func (o *openVSwitch) finder(t *testing.T, p vif.Plugger) vif.Finder {
	t.Helper()
	f, ok := p.(vif.Finder)
	require.True(t, ok)
	return f
}

func found(t *testing.T, f vif.Finder) []vif.Marked {
	t.Helper()
	marked, err := f.Marked(t.Context())
	require.NoError(t, err)
	return marked
}

// TestFindMarked: all that a plug has made is found without a record, told from what a guest uses, and removed.
func TestFindMarked(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{QoSType: ovs.DefaultQoSType})
	f := o.finder(t, p)
	for name, tc := range map[string]struct {
		port func(int) vif.VIF
		want func(v vif.VIF) []string
		held func(v vif.VIF) []string // by a guest
	}{
		"plain": {
			port: port,
			want: func(v vif.VIF) []string {
				return []string{"Open vSwitch port " + v.HostDevice(), "device " + v.HostDevice()}
			},
			held: func(v vif.VIF) []string {
				return []string{"Open vSwitch port " + v.HostDevice() + " (in use)", "device " + v.HostDevice() + " (in use)"}
			},
		},
		"hybrid": {
			port: hybridPort,
			want: func(v vif.VIF) []string {
				bridgeEnd, ovsEnd := vif.HybridPair(v.PortID)
				return []string{
					"Open vSwitch port " + ovsEnd, "device " + v.HostDevice(), "device " + bridgeEnd, "device " + ovsEnd, "device " + vif.HybridBridge(v.PortID),
				}
			},
			held: func(v vif.VIF) []string { return []string{"device " + v.HostDevice() + " (in use)"} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := tc.port(1)
			l, err := plug(t, p, v, patience)
			require.NoError(t, err)
			words := func() (all, inUse []string) {
				for _, m := range found(t, f) {
					require.Equal(t, v.InstanceID, m.Instance)
					if m.InUse {
						inUse = append(inUse, m.String())
					}
					all = append(all, m.String())
				}
				return all, inUse
			}
			all, inUse := words()
			require.ElementsMatch(t, tc.want(v), all)
			require.Empty(t, inUse)

			guest := viftest.NewGuest(t)
			guest.Take(l.Peer, "")
			_, inUse = words()
			require.ElementsMatch(t, tc.held(v), inUse)
			for _, m := range found(t, f) {
				if m.InUse {
					require.ErrorIs(t, f.RemoveMarked(t.Context(), m), vif.ErrInUse)
				}
			}
			_, err = o.wired(v)
			require.NoError(t, err)

			guest.Return("eth0", l.Peer)
			marked := found(t, f)
			for range 2 {
				for _, m := range marked {
					require.NoError(t, f.RemoveMarked(t.Context(), m))
				}
			}
			require.Empty(t, found(t, f))
			o.requireUnplugged(p, v)
		})
	}
}

// TestFindMarkedRows: what other services leave in Open vSwitch. Rows are known by the mark that os-vif writes too.
func TestFindMarkedRows(t *testing.T) {
	o := startOVS(t)
	f := o.finder(t, o.plugger(t, ovs.Options{}))
	o.vsctl("add-br", "br-int", "--", "set", "Bridge", "br-int", "datapath_type=netdev")
	add := func(name string, ids ...string) {
		args := []string{"--no-wait", "add-port", "br-int", name}
		for _, id := range ids {
			args = append(args, "--", "set", "Interface", name, "external_ids:"+id)
		}
		o.vsctl(args...)
	}
	there := func(name string) bool {
		return strings.Contains("\n"+o.vsctl("list-ports", "br-int")+"\n", "\n"+name+"\n")
	}
	row := func(n int, name string) vif.Marked {
		return vif.Marked{Instance: viftest.InstanceID(n), What: vif.MarkedOVSPort, Name: name}
	}
	add("tapgone", "iface-id="+viftest.PortID(1), "vm-uuid="+viftest.InstanceID(1))
	add("tapqemu", "iface-id="+viftest.PortID(2), "vm-uuid="+viftest.InstanceID(2))
	add("taprouter", "iface-id="+viftest.PortID(3))
	add("tapnamed", "vm-uuid=mine")
	viftest.Command(t, "ip", "tuntap", "add", "dev", "tapqemu", "mode", "tap")

	used := row(2, "tapqemu")
	used.InUse = true
	require.ElementsMatch(t, []vif.Marked{row(1, "tapgone"), used}, found(t, f))
	require.ErrorIs(t, f.RemoveMarked(t.Context(), used), vif.ErrInUse, "a guest of nova-compute has a device without mark")
	for _, name := range []string{"taprouter", "tapnamed", "br-int"} {
		require.NoError(t, f.RemoveMarked(t.Context(), row(1, name)))
	}
	require.NoError(t, f.RemoveMarked(t.Context(), row(2, "tapgone")), "it is another instance's")
	for _, name := range []string{"tapgone", "tapqemu", "taprouter", "tapnamed"} {
		require.True(t, there(name), name)
	}

	viftest.Command(t, "ip", "tuntap", "delete", "dev", "tapqemu", "mode", "tap")
	for _, m := range found(t, f) {
		require.False(t, m.InUse)
		require.NoError(t, f.RemoveMarked(t.Context(), m))
	}
	require.Empty(t, found(t, f))
	require.False(t, there("tapgone"))
	require.False(t, there("tapqemu"))
	require.True(t, there("taprouter"))
	require.True(t, there("tapnamed"))
}

// TestFindMarkedWithoutServer: a host without Open vSwitch has no ports of it; where it is only away, or hangs, that is told, in time.
func TestFindMarkedWithoutServer(t *testing.T) {
	viftest.Need(t)
	nl, err := link.Open()
	require.NoError(t, err)
	defer nl.Close()
	none := ovs.New(nl, ovs.Options{Endpoints: []string{"unix:/nonexistent/db.sock"}})
	start := time.Now()
	require.Empty(t, found(t, none))
	require.Less(t, time.Since(start), 15*time.Second, "it is not waited for")

	o := startOVS(t)
	f := o.finder(t, o.plugger(t, ovs.Options{}))
	require.Empty(t, found(t, f))
	look := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := f.Marked(ctx)
		require.Less(t, time.Since(start), patience)
		return err
	}
	require.NoError(t, o.server.Process.Signal(syscall.SIGSTOP))
	require.ErrorIs(t, look(), context.DeadlineExceeded)
	o.stop(o.server)
	require.ErrorContains(t, look(), "list OVS interfaces")
}
