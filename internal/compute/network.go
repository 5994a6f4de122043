package compute

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/vif"
)

// networkNone and networkAuto are the special requests of nova/objects/network_request.py.
const (
	networkNone = "none"
	networkAuto = "auto"
)

// requestsNetwork tells whether a server asked for any network at all.
func requestsNetwork(requested *object.NetworkRequestList) bool {
	return requested == nil || len(requested.Objects) != 1 || requested.Objects[0].NetworkID != networkNone
}

// allocateRequest translates the networks that a server asked for.
func (m *Manager) allocateRequest(inst *object.Instance, r *buildRequest) neutron.AllocateRequest {
	req := neutron.AllocateRequest{
		InstanceUUID: inst.UUID, ProjectID: inst.ProjectID, AvailabilityZone: inst.AvailabilityZone,
		Host: m.opts.Host, Hostname: inst.Hostname, SecurityGroups: r.SecurityGroups,
	}
	if r.RequestedNetworks == nil {
		return req
	}
	for _, n := range r.RequestedNetworks.Objects {
		if n.NetworkID == networkAuto {
			req.AutoAllocate = true
			continue
		}
		req.Networks = append(req.Networks, neutron.RequestedNetwork{
			NetworkID: n.NetworkID, PortID: n.PortID, FixedIP: n.Address, Tag: n.Tag,
		})
	}
	return req
}

// vifOfPort describes a port that has just been bound, for plugging. A binding may
// name its bridge; else it is the integration bridge, or the one that
// follows from a Linux bridge network's id (nova/network/neutron.py:_nw_info_build_network).
func (m *Manager) vifOfPort(instanceUUID string, p *neutron.AllocatedPort) vif.VIF {
	bridge, _ := p.VIFDetails["bridge_name"].(string)
	if bridge == "" && p.VIFType == "ovs" {
		bridge = m.opts.OVSBridge
	}
	return vif.VIF{
		PortID: p.ID, InstanceID: instanceUUID, MAC: p.MACAddress, Type: p.VIFType, VNICType: p.VNICType,
		Devname: vif.HostName(p.ID), Bridge: bridge, NetworkID: p.NetworkID, MTU: p.MTU,
		Details: p.VIFDetails, CreateBridge: p.VIFType == "bridge",
		QoSPolicy: p.QoSPolicyID != "" || p.QoSNetworkPolicyID != "",
	}
}

// bandwidth translates the flavor's quota:vif_*; the build refuses what cannot be read.
func (m *Manager) bandwidth(inst *object.Instance) vif.Bandwidth {
	f := inst.Flavor
	limits, _, err := flavor.FromSpecs(flavor.Flavor{VCPUs: f.VCPUs, MemoryMB: f.MemoryMB, ExtraSpecs: f.ExtraSpecs}, m.opts.FlavorPolicy)
	if err != nil {
		return vif.Bandwidth{}
	}
	n := limits.Network
	return vif.Bandwidth{
		In:  vif.Rate{Average: n.InboundAverage, Peak: n.InboundPeak, Burst: n.InboundBurst},
		Out: vif.Rate{Average: n.OutboundAverage, Peak: n.OutboundPeak, Burst: n.OutboundBurst},
	}
}

// vifOfInfo describes an entry of the info cache, for plugging.
func vifOfInfo(instanceUUID string, v *object.VIF) vif.VIF {
	details := map[string]any{}
	for _, key := range v.Details.Keys() {
		var value any
		if v.Details.Get(key, &value) {
			details[key] = value
		}
	}
	devname := v.DevName
	if devname == "" {
		devname = vif.HostName(v.ID)
	}
	return vif.VIF{
		PortID: v.ID, InstanceID: instanceUUID, MAC: v.Address, Type: v.Type, VNICType: v.VNICType,
		Devname: devname, Bridge: v.Network.Bridge, NetworkID: v.Network.ID, MTU: v.Network.MTU(),
		InterfaceID: v.OVSInterfaceID, Details: details, CreateBridge: v.Network.Meta.Bool("should_create_bridge"),
	}
}

func vifsOfInfo(instanceUUID string, info object.NetworkInfo) []vif.VIF {
	vifs := make([]vif.VIF, 0, len(info))
	for i := range info {
		vifs = append(vifs, vifOfInfo(instanceUUID, &info[i]))
	}
	return vifs
}

// networkInfo turns Neutron's description into the model that Nova stores. The
// order of keys in the free-form parts is Nova's, so that the text is too.
func (m *Manager) networkInfo(vifs []neutron.VIF) (object.NetworkInfo, error) {
	info := make(object.NetworkInfo, 0, len(vifs))
	for i := range vifs {
		v := &vifs[i]
		details, err := dictOf(v.Details)
		if err != nil {
			return nil, err
		}
		profile, err := dictOf(v.Profile)
		if err != nil {
			return nil, err
		}
		network, err := m.networkOf(&v.Network)
		if err != nil {
			return nil, err
		}
		info = append(info, object.VIF{
			ID: v.ID, Address: v.Address, Network: network, Type: v.Type, Details: details, DevName: v.Devname,
			OVSInterfaceID: v.OVSInterfaceID, QBHParams: json.RawMessage("null"), QBGParams: json.RawMessage("null"),
			Active: v.Active, VNICType: v.VNICType, Profile: profile,
			PreserveOnDelete: v.PreserveOnDelete, DelegateCreate: true,
		})
	}
	return info, nil
}

func (m *Manager) networkOf(n *neutron.VIFNetwork) (object.Network, error) {
	meta := newDict()
	meta.set("injected", false)
	meta.set("tenant_id", n.TenantID)
	if n.MTU > 0 {
		meta.set("mtu", n.MTU)
	} else {
		meta.set("mtu", nil)
	}
	if n.PhysicalNetwork != "" {
		meta.set("physical_network", n.PhysicalNetwork)
	} else {
		meta.set("physical_network", nil)
	}
	meta.set("tunneled", n.Tunneled)
	if n.ShouldCreateBridge && m.Release.ShouldCreateBridge {
		meta.set("should_create_bridge", true)
	}
	out := object.Network{ID: n.ID, Bridge: n.Bridge, Label: n.Label, Subnets: []object.Subnet{}}
	for i := range n.Subnets {
		subnet, err := m.subnetOf(&n.Subnets[i])
		if err != nil {
			return out, err
		}
		out.Subnets = append(out.Subnets, subnet)
	}
	var err error
	out.Meta, err = meta.done()
	return out, err
}

func (m *Manager) subnetOf(s *neutron.VIFSubnet) (object.Subnet, error) {
	meta := newDict()
	if s.IPv6AddressMode != "" {
		meta.set("ipv6_address_mode", s.IPv6AddressMode)
	}
	if s.EnableDHCP && m.Release.SubnetEnableDHCP {
		meta.set("enable_dhcp", true)
	}
	if s.DHCPServer != "" {
		meta.set("dhcp_server", s.DHCPServer)
	}
	out := object.Subnet{
		CIDR: s.CIDR, Version: s.Version, DNS: []object.IP{}, IPs: []object.FixedIP{}, Routes: []object.Route{},
		Gateway: ipOf(s.Gateway, "gateway"),
	}
	for _, address := range s.DNS {
		out.DNS = append(out.DNS, *ipOf(address, "dns"))
	}
	for _, a := range s.IPs {
		fixed := object.FixedIP{Address: a.Address, Type: "fixed", Version: ipVersion(a.Address), FloatingIPs: []object.IP{}}
		for _, f := range a.Floating {
			fixed.FloatingIPs = append(fixed.FloatingIPs, *ipOf(f, "floating"))
		}
		out.IPs = append(out.IPs, fixed)
	}
	for _, r := range s.Routes {
		out.Routes = append(out.Routes, object.Route{CIDR: r.Destination, Gateway: ipOf(r.NextHop, "gateway"), Interface: json.RawMessage("null")})
	}
	var err error
	out.Meta, err = meta.done()
	return out, err
}

func ipOf(address, kind string) *object.IP {
	return &object.IP{Address: address, Type: kind, Version: ipVersion(address)}
}

// ipVersion is 4, 6, or 0 for no address.
func ipVersion(address string) int {
	a, err := netip.ParseAddr(address)
	switch {
	case err != nil:
		return 0
	case a.Is4():
		return 4
	}
	return 6
}

// dict builds an object.Dict, keeping the first error for done.
type dict struct {
	d   object.Dict
	err error
}

func newDict() *dict { return &dict{} }

func (b *dict) set(key string, value any) {
	if b.err == nil {
		b.d, b.err = b.d.With(key, value)
	}
}

func (b *dict) done() (object.Dict, error) { return b.d, b.err }

// dictOf converts a decoded JSON object.
func dictOf(values map[string]any) (object.Dict, error) {
	var d object.Dict
	raw, err := json.Marshal(values)
	if err != nil {
		return d, fmt.Errorf("encode port attributes: %w", err)
	}
	if values == nil {
		raw = []byte("{}")
	}
	return d, json.Unmarshal(raw, &d)
}

// networkError gives a failure of Neutron its Nova class.
func networkError(inst *object.Instance, err error) error {
	reason := err.Error()
	for _, c := range []struct {
		sentinel error
		class    string
	}{
		{neutron.ErrPortNotFound, "PortNotFound"},
		{neutron.ErrPortInUse, "PortInUse"},
		{neutron.ErrPortNotUsable, "PortNotUsable"},
		{neutron.ErrPortNotUsableDNS, "PortNotUsableDNS"},
		{neutron.ErrPortLimitExceeded, "PortLimitExceeded"},
		{neutron.ErrBindingFailed, "PortBindingFailed"},
		{neutron.ErrPortUpdateFailed, "PortUpdateFailed"},
		{neutron.ErrNetworkNotFound, "NetworkNotFound"},
		{neutron.ErrNetworkAmbiguous, "NetworkAmbiguous"},
		{neutron.ErrNoNetwork, "InterfaceAttachFailedNoNetwork"},
		{neutron.ErrExternalNetworkForbidden, "ExternalNetworkAttachForbidden"},
		{neutron.ErrUnableToAutoAllocate, "UnableToAutoAllocateNetwork"},
		{neutron.ErrFixedIPInUse, "FixedIpAlreadyInUse"},
		{neutron.ErrFixedIPInvalid, "InvalidInput"},
		{neutron.ErrFixedIPInvalidOnHost, "FixedIpInvalidOnHost"},
		{neutron.ErrFixedIPNotFound, "FixedIpNotFoundForInstance"},
		{neutron.ErrNetworkNotAttached, "NetworkNotFoundForInstance"},
		{neutron.ErrNoMoreFixedIPs, "NoMoreFixedIps"},
		{neutron.ErrQoSNotSupported, "NetworksWithQoSPolicyNotSupported"},
		{neutron.ErrSecurityGroupNotFound, "SecurityGroupNotFound"},
		{neutron.ErrSecurityGroupAmbiguous, "NoUniqueMatch"},
		{neutron.ErrSecurityGroupNotApplicable, "SecurityGroupCannotBeApplied"},
		{neutron.ErrInvalidDNSName, "InvalidInput"},
		{neutron.ErrUnauthorized, "Unauthorized"},
		{neutron.ErrForbidden, "Forbidden"},
		{neutron.ErrAdminCredentials, "NeutronAdminCredentialConfigurationInvalid"},
		{vif.ErrNotBound, "VirtualInterfacePlugException"},
		{vif.ErrUnsupported, "VirtualInterfacePlugException"},
	} {
		if errors.Is(err, c.sentinel) {
			return exception.WithCause(c.class, reason, map[string]any{"instance_uuid": inst.UUID, "reason": reason}, err)
		}
	}
	return err
}
