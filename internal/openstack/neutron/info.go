package neutron

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// maxDeviceName is where Nova cuts names of devices and bridges.
const maxDeviceName = 14

// NetworkInfo describes the interfaces of a server in the order asked for
// (nova/network/neutron.py:_build_network_info_model). It reads the ports with
// one request, unless they come from an allocation, and the rest with two to
// five, whatever the number of interfaces.
//
// The requests go one after another, and an allocation does not read ahead what
// is needed here. At this time the guest waits for its ports to be plugged, so
// there is nothing to gain, while Neutron's API (often one process) would bind
// other ports later. Besides, parallel requests can hang in a Neutron that runs
// under uWSGI with threads ("greenlet.error: cannot switch to a different thread").
func (c *Client) NetworkInfo(ctx context.Context, r InfoRequest) ([]VIF, error) {
	b := &infoBuilder{client: c, preexisting: r.Preexisting}
	if a := r.Allocation; a != nil {
		b.preexisting = a.Preexisting()
		b.networks = a.Networks
		for i := range a.Ports {
			b.ports = append(b.ports, a.Ports[i].Port)
		}
		if err := b.gather(ctx, b.preexisting); err != nil {
			return nil, err
		}
		return b.vifs(), nil
	}
	ports, err := c.Ports(ctx, r.InstanceUUID, r.ProjectID)
	if err != nil {
		return nil, err
	}
	b.ports = inOrder(ports, r.PortIDs)
	ids := make([]string, 0, len(b.ports))
	for i := range b.ports {
		ids = append(ids, b.ports[i].ID)
	}
	if err := b.gather(ctx, ids); err != nil {
		return nil, err
	}
	return b.vifs(), nil
}

// inOrder picks ports by id; nil ids are all ports as they are.
func inOrder(ports []Port, ids []string) []Port {
	if ids == nil {
		return ports
	}
	picked := make([]Port, 0, len(ids))
	for _, id := range ids {
		i := slices.IndexFunc(ports, func(p Port) bool { return p.ID == id })
		if i >= 0 {
			picked = append(picked, ports[i])
		}
	}
	return picked
}

type infoBuilder struct {
	client      *Client
	ports       []Port
	preexisting []string
	networks    map[string]Network
	facts       *facts
	floating    map[[2]string][]string // port id, fixed address -> floating addresses
}

// gather reads what is not known yet. WithFloating are the ports that may have
// floating addresses: one that was just created has none.
func (b *infoBuilder) gather(ctx context.Context, withFloating []string) error {
	var networkIDs []string
	for i := range b.ports {
		if id := b.ports[i].NetworkID; !slices.Contains(networkIDs, id) {
			networkIDs = append(networkIDs, id)
		}
	}
	if b.networks == nil {
		all, err := list[Network](ctx, b.client, asAdmin, "networks", "id", networkIDs, url.Values{
			"fields": {"id", "name", "tenant_id", "mtu"},
		})
		if err != nil {
			return fmt.Errorf("list networks: %w", err)
		}
		b.networks = make(map[string]Network, len(all))
		for _, n := range all {
			b.networks[n.ID] = n
		}
	}
	var err error
	if b.facts, err = b.client.readFacts(ctx, networkIDs); err != nil {
		return err
	}
	b.floating, err = b.client.floatingIPs(ctx, withFloating)
	return err
}

// floatingIPs returns the floating addresses of ports by port and fixed address;
// none without the router extension.
func (c *Client) floatingIPs(ctx context.Context, portIDs []string) (map[[2]string][]string, error) {
	if len(portIDs) == 0 {
		return nil, nil
	}
	known, err := c.knownExtensions(ctx)
	if err != nil || !known[extRouter] {
		return nil, err
	}
	all, err := list[FloatingIP](ctx, c, asAdmin, "floatingips", "port_id", portIDs, nil)
	if openstack.Status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list floating ips: %w", err)
	}
	byAddress := make(map[[2]string][]string, len(all))
	for _, f := range all {
		key := [2]string{f.PortID, f.FixedIP}
		byAddress[key] = append(byAddress[key], f.Address)
	}
	return byAddress, nil
}

func (b *infoBuilder) vifs() []VIF {
	vifs := make([]VIF, 0, len(b.ports))
	for i := range b.ports {
		vifs = append(vifs, b.vif(&b.ports[i]))
	}
	return vifs
}

// vif describes one port (nova/network/neutron.py:_build_vif_model,
// _nw_info_build_network).
func (b *infoBuilder) vif(p *Port) VIF {
	v := VIF{
		ID: p.ID, Address: p.MACAddress, Type: p.VIFType, Details: p.VIFDetails, Devname: cut("tap" + p.ID),
		Active: p.Active(), VNICType: p.VNICType, Profile: p.Profile,
		PreserveOnDelete: slices.Contains(b.preexisting, p.ID),
	}
	if v.Details == nil {
		v.Details = map[string]any{}
	}
	if v.Profile == nil {
		v.Profile = map[string]any{}
	}
	if v.VNICType == "" {
		v.VNICType = "normal"
	}
	n, ok := b.networks[p.NetworkID]
	if !ok {
		n.ProjectID = p.ProjectID // the network is gone or hidden: Nova takes the port's
	}
	provider := b.facts.providers[p.NetworkID]
	v.Network = VIFNetwork{
		ID: p.NetworkID, Label: n.Name, TenantID: n.ProjectID, MTU: n.MTU,
		PhysicalNetwork: provider.physical, Tunneled: provider.tunneled, Subnets: b.subnets(p),
	}
	bridge := func(otherwise string) string {
		if name, ok := p.VIFDetails["bridge_name"].(string); ok && name != "" {
			return cut(name)
		}
		return cut(otherwise)
	}
	flag := func(key string) bool {
		set, _ := p.VIFDetails[key].(bool)
		return set
	}
	switch {
	case p.VIFType == "ovs" || p.VIFType == "agilio_ovs" || p.VIFType == "vhostuser" && flag("vhostuser_ovs_plug"):
		v.OVSInterfaceID = p.ID
		v.Network.Bridge = bridge(b.client.options.OVSBridge)
	case p.VIFType == "bridge":
		v.Network.Bridge = bridge("brq" + p.NetworkID)
		v.Network.ShouldCreateBridge = true
	case p.VIFType == "vhostuser" && flag("vhostuser_fp_plug"):
		v.Network.Bridge = bridge("brq" + p.NetworkID)
	case p.VIFType == "dvs":
		v.Network.Bridge = p.NetworkID // the name of its port group, whole
	}
	return v
}

// subnets describes the subnets in which a port has addresses, each once, in
// the order of the addresses. (Nova takes them as Neutron lists them.)
func (b *infoBuilder) subnets(p *Port) []VIFSubnet {
	var done []string
	var subnets []VIFSubnet
	for _, ip := range p.FixedIPs {
		s, ok := b.facts.subnets[ip.SubnetID]
		if !ok || slices.Contains(done, s.ID) {
			continue
		}
		done = append(done, s.ID)
		subnets = append(subnets, VIFSubnet{
			CIDR: s.CIDR, Version: s.IPVersion, Gateway: s.GatewayIP, DNS: s.DNSNameservers, Routes: s.HostRoutes,
			IPs: b.addresses(p, &s), DHCPServer: b.facts.dhcp[s.ID], EnableDHCP: s.EnableDHCP, IPv6AddressMode: s.IPv6AddressMode,
		})
	}
	return subnets
}

func (b *infoBuilder) addresses(p *Port, s *Subnet) []VIFAddress {
	var in []VIFAddress
	for _, ip := range p.FixedIPs {
		if ip.SubnetID == s.ID {
			in = append(in, VIFAddress{Address: ip.IPAddress, Floating: b.floating[[2]string{p.ID, ip.IPAddress}]})
		}
	}
	return in
}

func cut(name string) string {
	if len(name) > maxDeviceName {
		return name[:maxDeviceName]
	}
	return name
}
