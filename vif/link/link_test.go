package link

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
)

func TestHostMAC(t *testing.T) {
	t.Parallel()
	for guest, want := range map[string]string{
		"fa:16:3e:01:02:03": "fe:16:3e:01:02:03",
		"02:00:00:00:00:01": "fe:00:00:00:00:01",
		"fe:16:3e:01:02:03": "fa:16:3e:01:02:03",
	} {
		mac, err := net.ParseMAC(guest)
		require.NoError(t, err)
		require.Equal(t, want, hostMAC(mac).String())
		require.Equal(t, guest, mac.String(), "the guest's address is left alone")
	}
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"tap1a2b3c4d-5e", "br-int", "a", "eth0.100", "..."} {
		require.NoError(t, checkName(ok))
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../lo", "a b", "a\tb", "a:b", "sixteen-letters-", "x\x00y"} {
		require.Error(t, checkName(bad), "%q", bad)
	}
}

func TestPairOf(t *testing.T) {
	t.Parallel()
	v := vif.VIF{PortID: "1a2b3c4d-5e6f-4000", InstanceID: "uuid", MAC: "fa:16:3e:00:00:01"}
	p := PairOf(v)
	require.Equal(t, Pair{Host: "tap1a2b3c4d-5e", Peer: "tin1a2b3c4d-5e", MAC: v.MAC, MTU: 1500, Alias: "uuid"}, p)
	v.MTU, v.Devname = 9000, "tapother"
	require.Equal(t, vif.Link{Host: "tapother", Peer: "tin1a2b3c4d-5e", MAC: v.MAC, MTU: 9000}, Of(v, PairState{PeerHere: true}))
	require.Equal(t, vif.Link{Host: "tapother", MAC: v.MAC, MTU: 9000}, Of(v, PairState{}))
}
