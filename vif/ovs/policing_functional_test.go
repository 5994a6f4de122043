//go:build functional

package ovs_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/ovs"
	"github.com/compute-agent/compute-agent/vif/viftest"
)

// bound is what vswitchd is told to bound of a port.
func (o *openVSwitch) bound(v vif.VIF) string {
	o.t.Helper()
	return o.vsctl("get", "Interface", v.HostDevice(), "ingress_policing_rate", "ingress_policing_burst")
}

// TestOutgoingLimit: vswitchd is told the bound of what a guest sends, and nothing is queued where it takes every queue away.
func TestOutgoingLimit(t *testing.T) {
	o := startOVS(t)
	p := o.plugger(t, ovs.Options{})
	v := port(1)
	for range 10 { // vswitchd takes the ingress queue away soon after it has opened the device
		v.Bandwidth.Out = vif.Rate{Average: 500}
		_, err := plug(t, p, v, patience)
		require.NoError(t, err)
		require.Equal(t, "4000\n8000", o.bound(v))
		require.NoFileExists(t, "/sys/class/net/"+vif.ShapeName(v.PortID))
		o.requireUnplugged(p, v)
	}
	again := func(out vif.Rate, bound string) {
		t.Helper()
		v.Bandwidth.Out = out
		for range 2 {
			_, err := plug(t, p, v, patience)
			require.NoError(t, err)
			require.Equal(t, bound, o.bound(v))
		}
	}
	again(vif.Rate{}, "0\n0")
	again(vif.Rate{Average: 500, Burst: 64}, "4000\n524")
	again(vif.Rate{Average: 125_000}, "1000000\n800000")
	again(vif.Rate{}, "0\n0")
	require.NotContains(t, o.vsctl("get", "Interface", v.HostDevice(), "external_ids"), "policing")

	o.vsctl("--no-wait", "set", "Interface", v.HostDevice(), "ingress_policing_rate=100", "ingress_policing_burst=80") // a QoS policy of Neutron's
	again(vif.Rate{Average: 500}, "100\n80")
	again(vif.Rate{}, "100\n80")
	o.requireUnplugged(p, v)
}

// TestOutgoingLimitKernel: the bound holds on the datapath that hypervisors have, also after a restart of vswitchd.
func TestOutgoingLimitKernel(t *testing.T) {
	o := startKernelOVS(t)
	p := o.plugger(t, ovs.Options{QoSType: ovs.DefaultQoSType})
	limited, other, third := port(1), port(2), port(3)
	limited.Bandwidth = vif.Bandwidth{In: vif.Rate{Average: 4000}, Out: vif.Rate{Average: 2000}}
	var guests []*viftest.Guest
	for i, v := range []vif.VIF{limited, other} {
		v.Details["datapath_type"] = "system"
		l, err := plug(t, p, v, patience)
		require.NoError(t, err)
		guests = append(guests, viftest.NewGuest(t))
		guests[i].Take(l.Peer, []string{"192.0.2.1/24", "192.0.2.2/24"}[i])
	}
	keeps := func() {
		t.Helper()
		viftest.RequireRate(t, 4000, guests[1], guests[0], "192.0.2.1", 8_000_000)
		rate := viftest.Send(t, guests[0], guests[1], "192.0.2.2", 12_000_000)
		require.Less(t, rate, 2000*1.4) // with the burst, of 0.8 s
		require.Greater(t, rate, 2000*0.2, "what is dropped is sent again")
	}
	keeps()
	o.stop(o.switchd) // the next one looks at all ports anew
	o.startSwitchd()
	third.Details["datapath_type"] = "system"
	_, err := plug(t, p, third, patience)
	require.NoError(t, err)
	keeps()
	require.Contains(t, viftest.Command(t, "tc", "filter", "show", "dev", limited.HostDevice(), "ingress"), "police")

	limited.Bandwidth = vif.Bandwidth{}
	_, err = plug(t, p, limited, patience)
	require.NoError(t, err)
	viftest.RequireFast(t, 8000, guests[0], guests[1], "192.0.2.2", 40_000_000)
	for _, v := range []vif.VIF{limited, other, third} {
		require.NoError(t, p.Unplug(t.Context(), v))
	}
	for _, v := range []vif.VIF{limited, other, third} {
		o.requireUnplugged(p, v)
	}
}
