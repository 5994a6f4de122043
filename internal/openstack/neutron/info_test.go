package neutron

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// wantVIF is what Nova stored for the recorded port, as far as VIF holds it.
func wantVIF(p *Port) VIF {
	return VIF{
		ID: p.ID, Address: p.MACAddress, Type: "bridge", Devname: cut("tap" + p.ID), VNICType: "normal",
		Details: p.VIFDetails, Profile: map[string]any{},
		Network: VIFNetwork{
			ID: netID, Bridge: "brq4ab93dae-e4", Label: "demo-net", TenantID: projectID, MTU: 1500,
			PhysicalNetwork: "physnet1", ShouldCreateBridge: true,
			Subnets: []VIFSubnet{{
				CIDR: "10.77.0.0/24", Version: 4, Gateway: "10.77.0.1", DNS: []string{}, Routes: []HostRoute{},
				DHCPServer: "10.77.0.10", EnableDHCP: true, IPs: []VIFAddress{{Address: p.FixedIPs[0].IPAddress}},
			}},
		},
	}
}

func TestInfoOfAnAllocation(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	a, err := c.AllocateForInstance(tenant(t), request())
	require.NoError(t, err)
	f.asked(false)
	for i := range 2 {
		vifs, err := c.NetworkInfo(tenant(t), InfoRequest{Allocation: a})
		require.NoError(t, err)
		require.Empty(t, cmp.Diff([]VIF{wantVIF(&a.Ports[0].Port)}, vifs))
		calls := []string{
			"admin GET /networks?fields=id&fields=segments&fields=provider:physical_network&fields=provider:network_type&id=" + netID,
			"admin GET /subnets?network_id=" + netID,
			"admin GET /ports?device_owner=network:dhcp&fields=id&fields=fixed_ips&network_id=" + netID,
		}
		require.Equal(t, calls[i:], f.asked(false), "the provider's side of a network is read once")
	}
}

func TestInfoOfAServer(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.file("GET /ports?device_id", 200, "ports-of-server")
	f.text("GET /extensions", 200, `{"extensions": [{"alias": "router"}]}`)
	var recordedPorts struct{ Ports []Port }
	require.NoError(t, json.Unmarshal([]byte(recorded(t, "ports-of-server")), &recordedPorts))
	p := recordedPorts.Ports[0]
	want := wantVIF(&p)
	want.PreserveOnDelete = true

	vifs, err := c.NetworkInfo(t.Context(), InfoRequest{InstanceUUID: "instance", ProjectID: projectID, Preexisting: []string{p.ID}})
	require.NoError(t, err)
	require.Empty(t, cmp.Diff([]VIF{want}, vifs), "without L3 the list of floating ips is a 404")
	calls := f.asked(false)
	require.Equal(t, "admin GET /ports?device_id=instance&tenant_id="+projectID, calls[0])
	require.Len(t, calls, 7)

	address := p.FixedIPs[0].IPAddress
	f.text("GET /floatingips", 200, `{"floatingips": [{"port_id": "`+p.ID+`", "fixed_ip_address": "`+address+`", "floating_ip_address": "192.0.2.5"},`+
		`{"port_id": "`+p.ID+`", "fixed_ip_address": "10.77.0.250", "floating_ip_address": "192.0.2.6"}]}`)
	vifs, err = c.NetworkInfo(t.Context(), InfoRequest{InstanceUUID: "instance", PortIDs: []string{"gone", p.ID}})
	require.NoError(t, err)
	require.Len(t, vifs, 1)
	require.Equal(t, []VIFAddress{{Address: address, Floating: []string{"192.0.2.5"}}}, vifs[0].Network.Subnets[0].IPs)
	require.Equal(t, p.ID, vifs[0].ID)

	f.text("GET /ports?device_id", 200, `{"ports": []}`)
	vifs, err = c.NetworkInfo(t.Context(), InfoRequest{InstanceUUID: "instance"})
	require.NoError(t, err)
	require.Empty(t, vifs)
}

func TestVIFByType(t *testing.T) {
	t.Parallel()
	const id = "1a2b3c4d-5e6f-4000-8000-000000000000"
	c, _ := newFake(t)
	for _, tt := range []struct {
		vifType         string
		details         map[string]any
		bridge, ovsID   string
		shouldBeCreated bool
	}{
		{"ovs", nil, "br-int", id, false},
		{"ovs", map[string]any{"bridge_name": "tbr-0123456789abcdef"}, "tbr-0123456789", id, false},
		{"bridge", nil, "brq4ab93dae-e4", "", true},
		{"bridge", map[string]any{"bridge_name": "br0"}, "br0", "", true},
		{"vhostuser", map[string]any{"vhostuser_ovs_plug": true}, "br-int", id, false},
		{"vhostuser", map[string]any{"vhostuser_fp_plug": true}, "brq4ab93dae-e4", "", false},
		{"vhostuser", nil, "", "", false},
		{"dvs", nil, netID, "", false},
		{"unbound", nil, "", "", false},
	} {
		b := &infoBuilder{client: c, facts: &facts{}, networks: map[string]Network{}}
		v := b.vif(&Port{ID: id, NetworkID: netID, ProjectID: "p", VIFType: tt.vifType, VIFDetails: tt.details, Status: "ACTIVE", AdminStateUp: true})
		require.Equal(t, tt.bridge, v.Network.Bridge, tt.vifType)
		require.Equal(t, tt.ovsID, v.OVSInterfaceID, tt.vifType)
		require.Equal(t, tt.shouldBeCreated, v.Network.ShouldCreateBridge, tt.vifType)
		require.Equal(t, "tap1a2b3c4d-5e", v.Devname)
		require.Equal(t, "p", v.Network.TenantID, "of the port when the network is not seen")
		require.True(t, v.Active)
	}
}

func TestProviderNetwork(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, network string
		want          providerNet
		fails         bool
	}{
		{"flat", `{"provider:physical_network": "physnet1", "provider:network_type": "flat"}`, providerNet{physical: "physnet1"}, false},
		{"vxlan", `{"provider:physical_network": null, "provider:network_type": "vxlan"}`, providerNet{tunneled: true}, false},
		{"geneve", `{"provider:network_type": "geneve"}`, providerNet{tunneled: true}, false},
		{"segments", `{"segments": [{"provider:network_type": "vxlan"}, {"provider:physical_network": "p2", "provider:network_type": "vlan"}]}`, providerNet{physical: "p2"}, false},
		{"tunnel segments", `{"id": "n", "segments": [{"provider:network_type": "vxlan"}]}`, providerNet{}, true},
		{"hidden", `{}`, providerNet{}, false},
	} {
		var n Network
		require.NoError(t, json.Unmarshal([]byte(tt.network), &n))
		got, err := n.provider()
		require.Equal(t, tt.want, got, tt.name)
		require.Equal(t, tt.fails, err != nil, tt.name)
	}
}

func TestPagesAndLongLists(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.text("GET /ports?device_id=i", 200, `{"ports": [{"id": "1"}], "ports_links": [{"rel": "next", "href": "http://h/v2.0/ports?device_id=i&marker=1"}]}`)
	f.text("GET /ports?device_id=i&marker=1", 200, `{"ports": [{"id": "2"}], "ports_links": [{"rel": "previous", "href": "x"}]}`)
	ports, err := c.Ports(t.Context(), "i", "")
	require.NoError(t, err)
	require.Equal(t, []string{"1", "2"}, []string{ports[0].ID, ports[1].ID})

	f.asked(false)
	ids := make([]string, 250)
	for i := range ids {
		ids[i] = strings.Repeat("x", 36)
	}
	_, err = c.portsByID(t.Context(), ids)
	require.NoError(t, err)
	calls := f.asked(false)
	require.Len(t, calls, 3)
	for _, call := range calls {
		require.Less(t, len(call), 8000)
	}

	f.text("GET /ports?device_id=i", 200, `{"other": []}`)
	_, err = c.Ports(t.Context(), "i", "")
	require.ErrorContains(t, err, "read list of ports")
}
