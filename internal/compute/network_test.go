package compute

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/vif"
)

// capturedInfo is the last network_info that nova-compute stored in a captured create.
func capturedInfo(t testing.TB, releaseName string) string {
	t.Helper()
	info := ""
	for _, m := range capture.Operation(t, releaseName, "server-create") {
		var save struct {
			Name string `json:"nova_object.name"`
			Data struct {
				NetworkInfo string `json:"network_info"`
			} `json:"nova_object.data"`
		}
		if m.Method == "object_action" && json.Unmarshal(m.Args["objinst"], &save) == nil && save.Name == "InstanceInfoCache" && save.Data.NetworkInfo != "" {
			info = save.Data.NetworkInfo
		}
	}
	require.NotEmpty(t, info)
	return info
}

// sortedDetails puts the keys of a text's details into the order that a decoded port has.
// Nova keeps Neutron's, on which nobody depends.
func sortedDetails(t testing.TB, info string) string {
	t.Helper()
	before, rest, found := strings.Cut(info, `"details": `)
	require.True(t, found)
	details, after, found := strings.Cut(rest, `, "devname"`)
	require.True(t, found)
	var decoded map[string]any
	require.NoError(t, json.Unmarshal([]byte(details), &decoded))
	sorted, err := json.Marshal(decoded)
	require.NoError(t, err)
	spaced := strings.NewReplacer(`:`, `: `, `,"`, `, "`).Replace(string(sorted))
	return before + `"details": ` + spaced + `, "devname"` + after
}

// TestNetworkInfoText: of the same port the same text as nova-compute's goes into the database.
func TestNetworkInfoText(t *testing.T) {
	t.Parallel()
	subnet := func(address string) []neutron.VIFSubnet {
		return []neutron.VIFSubnet{{
			CIDR: "10.77.0.0/24", Version: 4, Gateway: "10.77.0.1", DHCPServer: "10.77.0.10", EnableDHCP: true,
			IPs: []neutron.VIFAddress{{Address: address}},
		}}
	}
	for _, c := range []struct {
		release string
		port    neutron.VIF
	}{
		{"zed", neutron.VIF{
			ID: "644a610f-e8ea-4b34-b069-978579fec422", Address: "fa:16:3e:16:ab:7e", Type: "bridge", Devname: "tap644a610f-e8", Active: true, VNICType: "normal",
			Details: map[string]any{"connectivity": "l2", "port_filter": true, "bound_drivers": map[string]any{"0": "linuxbridge"}},
			Network: neutron.VIFNetwork{
				ID: "c33fd595-9a52-45e4-b0b7-cd353f08b77e", Bridge: "brqc33fd595-9a", Label: "demo-net", TenantID: "b9904f716079431ab397a1c1e18e392a",
				MTU: 1500, PhysicalNetwork: "physnet1", ShouldCreateBridge: true, Subnets: subnet("10.77.0.45"),
			},
		}},
		{"epoxy", neutron.VIF{
			ID: "effeec65-d781-4082-b6d2-5a35923b24a7", Address: "fa:16:3e:e2:67:f0", Type: "ovs", Devname: "tapeffeec65-d7", Active: true, VNICType: "normal",
			OVSInterfaceID: "effeec65-d781-4082-b6d2-5a35923b24a7",
			Details: map[string]any{
				"connectivity": "l2", "port_filter": true, "ovs_hybrid_plug": false, "datapath_type": "netdev", "bridge_name": "br-int",
				"bound_drivers": map[string]any{"0": "openvswitch"},
			},
			Network: neutron.VIFNetwork{
				ID: "50f3b49a-9cad-4da6-a758-283af59e3c7b", Bridge: "br-int", Label: "demo-net", TenantID: "f19fb3c8cb3e43b6bba044ff95863c9e",
				MTU: 1500, PhysicalNetwork: "physnet1", Subnets: subnet("10.77.0.238"),
			},
		}},
	} {
		r, err := release.ByName(c.release)
		require.NoError(t, err)
		m := &Manager{Deps: Deps{Release: r}}
		info, err := m.networkInfo([]neutron.VIF{c.port})
		require.NoError(t, err)
		raw, err := object.Encode(&object.InstanceInfoCache{}, map[string]any{"network_info": info})
		require.NoError(t, err)
		var got string
		require.NoError(t, json.Unmarshal(raw["network_info"], &got))
		require.Equal(t, sortedDetails(t, capturedInfo(t, c.release)), got, c.release)
	}
}

// TestNetworkInfoOfMore: what the captures do not have.
func TestNetworkInfoOfMore(t *testing.T) {
	t.Parallel()
	r, err := release.ByName("2024.1")
	require.NoError(t, err)
	m := &Manager{Deps: Deps{Release: r}}
	info, err := m.networkInfo([]neutron.VIF{{
		ID: "p", PreserveOnDelete: true, Profile: map[string]any{"a": 1}, Network: neutron.VIFNetwork{ID: "n", Tunneled: true, Subnets: []neutron.VIFSubnet{{
			CIDR: "2001:db8::/64", Version: 6, IPv6AddressMode: "slaac", DNS: []string{"2001:db8::53"}, EnableDHCP: true,
			IPs:    []neutron.VIFAddress{{Address: "2001:db8::7", Floating: []string{"192.0.2.9"}}},
			Routes: []neutron.HostRoute{{Destination: "::/0", NextHop: "2001:db8::1"}},
		}}},
	}})
	require.NoError(t, err)
	v := info[0]
	require.True(t, v.PreserveOnDelete)
	require.Equal(t, 1, v.Profile.Int("a"))
	require.Empty(t, v.Details.Keys())
	require.Equal(t, []string{"injected", "tenant_id", "mtu", "physical_network", "tunneled"}, v.Network.Meta.Keys())
	s := v.Network.Subnets[0]
	require.Equal(t, []string{"ipv6_address_mode", "enable_dhcp"}, s.Meta.Keys())
	require.Equal(t, "2001:db8::53 6", fmt.Sprint(s.DNS[0].Address, " ", s.DNS[0].Version))
	require.Equal(t, "192.0.2.9 4 floating", fmt.Sprint(s.IPs[0].FloatingIPs[0].Address, " ", s.IPs[0].FloatingIPs[0].Version, " ", s.IPs[0].FloatingIPs[0].Type))
	require.Equal(t, "2001:db8::1", s.Routes[0].Gateway.Address)
	require.Empty(t, s.Gateway.Address)

	for _, broken := range []neutron.VIF{{Details: map[string]any{"f": func() {}}}, {Profile: map[string]any{"f": func() {}}}} {
		_, err := m.networkInfo([]neutron.VIF{broken})
		require.Error(t, err)
	}
}

func TestVIFs(t *testing.T) {
	t.Parallel()
	m := &Manager{opts: Options{OVSBridge: "br-int"}}
	port := &neutron.AllocatedPort{MTU: 1450}
	port.ID, port.VIFType, port.VNICType, port.MACAddress, port.NetworkID = "1a2b3c4d-5e6f-7a8b", "ovs", "normal", "fa:16:3e:00:00:01", "net"
	require.Empty(t, cmp.Diff(vif.VIF{
		PortID: "1a2b3c4d-5e6f-7a8b", InstanceID: "i", MAC: "fa:16:3e:00:00:01", Type: "ovs", VNICType: "normal", Devname: "tap1a2b3c4d-5e",
		Bridge: "br-int", NetworkID: "net", MTU: 1450,
	}, m.vifOfPort("i", port)))
	port.VIFDetails = map[string]any{"bridge_name": "br-other"}
	require.Equal(t, "br-other", m.vifOfPort("i", port).Bridge)
	port.VIFType, port.VIFDetails = "bridge", nil
	linux := m.vifOfPort("i", port)
	require.True(t, linux.CreateBridge)
	require.Empty(t, linux.Bridge, "it follows from the network")

	// A start plugs from the cache what the build plugged from the port.
	w := built(t)
	rec, _, err := w.record(uuid)
	require.NoError(t, err)
	fromCache := vifsOfInfo(uuid, w.instance("info_cache").NetworkInfo())
	require.Len(t, fromCache, 1)
	require.Equal(t, "brq4ab93dae-e4", fromCache[0].Bridge)
	fromCache[0].Bridge = rec.VIFs[0].Bridge
	fromCache[0].InterfaceID = rec.VIFs[0].InterfaceID
	require.Empty(t, cmp.Diff(rec.VIFs, fromCache))
	require.Equal(t, "tapp", vifOfInfo("i", &object.VIF{ID: "p"}).Devname)
}

func TestAllocateRequest(t *testing.T) {
	t.Parallel()
	m := &Manager{opts: Options{Host: testHost}}
	inst := &object.Instance{UUID: "i", ProjectID: "p", Hostname: "h", AvailabilityZone: "z"}
	list := func(networks ...*object.NetworkRequest) *object.NetworkRequestList {
		return &object.NetworkRequestList{Objects: networks}
	}
	base := neutron.AllocateRequest{InstanceUUID: "i", ProjectID: "p", Hostname: "h", AvailabilityZone: "z", Host: testHost, SecurityGroups: []string{"g"}}
	for _, c := range []struct {
		name     string
		networks *object.NetworkRequestList
		any      bool
		change   func(*neutron.AllocateRequest)
	}{
		{"nothing said", nil, true, nil},
		{"none", list(&object.NetworkRequest{NetworkID: "none"}), false, func(r *neutron.AllocateRequest) { r.Networks = []neutron.RequestedNetwork{{NetworkID: "none"}} }},
		{"auto", list(&object.NetworkRequest{NetworkID: "auto"}), true, func(r *neutron.AllocateRequest) { r.AutoAllocate = true }},
		{
			"two", list(&object.NetworkRequest{NetworkID: "n", Address: "10.0.0.1"}, &object.NetworkRequest{PortID: "p", Tag: "t"}), true,
			func(r *neutron.AllocateRequest) {
				r.Networks = []neutron.RequestedNetwork{{NetworkID: "n", FixedIP: "10.0.0.1"}, {PortID: "p", Tag: "t"}}
			},
		},
	} {
		want := base
		if c.change != nil {
			c.change(&want)
		}
		require.Equal(t, c.any, requestsNetwork(c.networks), c.name)
		require.Empty(t, cmp.Diff(want, m.allocateRequest(inst, &buildRequest{RequestedNetworks: c.networks, SecurityGroups: []string{"g"}})), c.name)
	}
}

// TestErrorClasses: what drivers and clients say, in the words of Nova's callers.
func TestErrorClasses(t *testing.T) {
	t.Parallel()
	inst := &object.Instance{UUID: uuid}
	for sentinel, class := range map[error]string{
		driver.ErrNotFound: "InstanceNotFound", driver.ErrExists: "InstanceExists", driver.ErrNotRunning: "InstanceNotRunning",
		driver.ErrNoResources: "ComputeResourcesUnavailable", driver.ErrTimeout: "InstancePowerOffFailure", driver.ErrUnsupported: "NotImplementedError",
		storage.ErrNoSpace: "ComputeResourcesUnavailable", storage.ErrUnsupported: "InvalidDiskInfo",
	} {
		err := novaError(inst, fmt.Errorf("do it: %w", sentinel))
		require.True(t, exception.Is(err, class), "%v", err)
		require.ErrorIs(t, err, sentinel)
	}
	require.Same(t, errBoom, novaError(inst, errBoom))
	for err, class := range map[error]string{
		&imagesync.UnacceptableError{Found: "a", Want: "b"}: "ImageUnacceptable", imagesync.ErrHashMismatch: "ImageUnacceptable",
		imagesync.ErrNoSpace: "ComputeResourcesUnavailable", glance.ErrNotFound: "ImageNotFound", glance.ErrNotAuthorized: "ImageNotAuthorized",
		glance.ErrNoData: "ImageUnacceptable", glance.ErrUnreachable: "GlanceConnectionFailed",
	} {
		require.True(t, exception.Is(imageError("i", fmt.Errorf("sync: %w", err)), class), class)
	}
	require.Same(t, errBoom, imageError("i", errBoom))

	s := &spawn{inst: inst}
	for sentinel, abort := range map[error]bool{
		neutron.ErrPortNotFound: true, neutron.ErrPortInUse: true, neutron.ErrNoMoreFixedIPs: true, neutron.ErrNetworkAmbiguous: true,
		neutron.ErrQoSNotSupported: true, neutron.ErrForbidden: true, neutron.ErrInvalidDNSName: true,
		neutron.ErrBindingFailed: false, neutron.ErrAdminCredentials: false, vif.ErrUnsupported: false, vif.ErrNotBound: false, errors.New("refused"): false,
	} {
		err := s.networkFailure(fmt.Errorf("allocate: %w", sentinel))
		require.Equal(t, abort, isAbort(err), "%v", err)
		require.ErrorContains(t, err, sentinel.Error())
	}
}
