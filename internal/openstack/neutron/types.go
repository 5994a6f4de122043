package neutron

import (
	"context"
	"encoding/json"
)

// Port is a Neutron port as an administrator sees it.
type Port struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	NetworkID    string    `json:"network_id"`
	ProjectID    string    `json:"tenant_id"`
	MACAddress   string    `json:"mac_address"`
	AdminStateUp bool      `json:"admin_state_up"`
	Status       string    `json:"status"` // ACTIVE, DOWN, BUILD, ERROR
	DeviceID     string    `json:"device_id"`
	DeviceOwner  string    `json:"device_owner"`
	DNSName      string    `json:"dns_name"`
	FixedIPs     []FixedIP `json:"fixed_ips"`

	SecurityGroups []string `json:"security_groups"`

	// The binding attributes are absent from what a plain user is shown.
	HostID     string         `json:"binding:host_id"`
	VIFType    string         `json:"binding:vif_type"` // ovs, bridge, unbound, binding_failed, …
	VIFDetails map[string]any `json:"binding:vif_details"`
	VNICType   string         `json:"binding:vnic_type"`
	Profile    map[string]any `json:"binding:profile"`

	// QoSPolicyID and QoSNetworkPolicyID are the policies of the port itself and of its network.
	QoSPolicyID        string `json:"qos_policy_id"`
	QoSNetworkPolicyID string `json:"qos_network_policy_id"`

	// ResourceRequest is non-empty for a port with a minimum bandwidth or
	// packet rate; only an administrator is shown it.
	ResourceRequest json.RawMessage `json:"resource_request"`
}

// FixedIP is an address of a port.
type FixedIP struct {
	SubnetID  string `json:"subnet_id,omitempty"`
	IPAddress string `json:"ip_address,omitempty"`
}

// Active reports whether network traffic may be expected to pass: the port is
// ACTIVE, or administratively down so that it will never become so
// (nova/network/neutron.py:_build_vif_model).
func (p *Port) Active() bool { return !p.AdminStateUp || p.Status == "ACTIVE" }

// Network is a Neutron network. The provider attributes are shown to administrators only.
type Network struct {
	ID             string   `json:"id"`
	Name           string   `json:"name"`
	ProjectID      string   `json:"tenant_id"`
	AdminStateUp   bool     `json:"admin_state_up"`
	MTU            int      `json:"mtu"` // 0: not given
	Shared         bool     `json:"shared"`
	RouterExternal bool     `json:"router:external"`
	DNSDomain      string   `json:"dns_domain"`
	Subnets        []string `json:"subnets"`
	QoSPolicyID    string   `json:"qos_policy_id"`

	// PortSecurityEnabled is nil without the port-security extension, which means enabled.
	PortSecurityEnabled *bool `json:"port_security_enabled"`

	PhysicalNetwork string    `json:"provider:physical_network"`
	NetworkType     string    `json:"provider:network_type"` // flat, vlan, vxlan, gre, geneve, local
	Segments        []Segment `json:"segments"`              // multi-provider networks
}

// Segment is one provider segment of a multi-provider network.
type Segment struct {
	PhysicalNetwork string `json:"provider:physical_network"`
	NetworkType     string `json:"provider:network_type"`
}

// Subnet is a Neutron subnet.
type Subnet struct {
	ID              string      `json:"id"`
	NetworkID       string      `json:"network_id"`
	CIDR            string      `json:"cidr"`
	IPVersion       int         `json:"ip_version"`
	GatewayIP       string      `json:"gateway_ip"` // empty: none
	EnableDHCP      bool        `json:"enable_dhcp"`
	DNSNameservers  []string    `json:"dns_nameservers"`
	HostRoutes      []HostRoute `json:"host_routes"`
	IPv6AddressMode string      `json:"ipv6_address_mode"`
}

// HostRoute is a route that a subnet announces.
type HostRoute struct {
	Destination string `json:"destination"`
	NextHop     string `json:"nexthop"`
}

// FloatingIP is a floating address bound to a port.
type FloatingIP struct {
	Address string `json:"floating_ip_address"`
	FixedIP string `json:"fixed_ip_address"`
	PortID  string `json:"port_id"`
}

// RequestedNetwork is one entry of a server's requested networks, in request order.
type RequestedNetwork struct {
	NetworkID string // or
	PortID    string // a port that exists; it is preserved when the server goes
	FixedIP   string // wanted address for a port to be created
	Tag       string // device tag, returned with the port
}

// AllocateRequest asks for the ports of a server.
type AllocateRequest struct {
	InstanceUUID     string
	ProjectID        string
	AvailabilityZone string // empty: none, which device_owner spells "compute:None"
	Host             string // binding:host_id
	Hostname         string // for dns_name
	SecurityGroups   []string
	// Networks are the requested ones. Empty: the project's only network, if it
	// has one. A single entry without ids (an interface on any network): the
	// project's only network, which must be there.
	Networks []RequestedNetwork
	// AutoAllocate is the request "auto": the project's only network, created if there is none.
	AutoAllocate bool
	// AttachExternal: the caller's policy permits ports on external networks
	// that are not shared (os_compute_api:servers:create:network:attach_external_network, admin by default).
	AttachExternal bool
	// ProviderMapping maps request groups (port ids before the extension
	// port-resource-request-groups) to the resource providers that fulfil them,
	// for the user's own ports with a resource request.
	ProviderMapping map[string][]string
	// OnBound is called as soon as a port is bound to Host, from several
	// goroutines at once and in any order, so that plugging can begin. An error
	// fails the allocation, which is then undone. May be nil.
	OnBound func(context.Context, AllocatedPort) error
}

// AllocatedPort is a port that the allocation bound to the server's host.
type AllocatedPort struct {
	Port
	Tag     string
	Created bool // false: the user's own port, to be preserved on delete
	Index   int  // place in request order
	MTU     int  // of the port's network; 0: unknown
}

// Allocation is what AllocateForInstance leaves in Neutron.
type Allocation struct {
	// Ports are in request order: the order of the guest's interfaces, and the
	// one in which VirtualInterface rows have to be created.
	Ports []AllocatedPort
	// Networks by id, as the user sees them.
	Networks map[string]Network
}

// Preexisting returns the ids of the ports that the user brought.
func (a *Allocation) Preexisting() []string {
	var ids []string
	for i := range a.Ports {
		if !a.Ports[i].Created {
			ids = append(ids, a.Ports[i].ID)
		}
	}
	return ids
}

// InfoRequest asks for the network info of a server.
type InfoRequest struct {
	InstanceUUID string
	ProjectID    string
	// PortIDs gives the ports and their order. Ports that Neutron does not
	// have (any more) are left out of the answer. Nil: all ports of the server,
	// as Neutron orders them.
	PortIDs []string
	// Preexisting are the ports to be preserved on delete.
	Preexisting []string
	// Allocation spares reading again what has just been allocated. With it,
	// PortIDs and Preexisting are ignored and only its ports are described.
	Allocation *Allocation
}

// VIF is one interface of a server, with what Nova's network info model holds
// (nova/network/model.py:VIF). Empty strings stand for null.
type VIF struct {
	ID               string // port
	Address          string // MAC
	Network          VIFNetwork
	Type             string // vif_type
	Details          map[string]any
	Devname          string // tap + 11 characters
	OVSInterfaceID   string
	Active           bool
	VNICType         string
	Profile          map[string]any
	PreserveOnDelete bool
}

// VIFNetwork is the network of a VIF.
type VIFNetwork struct {
	ID              string
	Bridge          string
	Label           string // network name
	TenantID        string
	MTU             int // 0: unknown
	PhysicalNetwork string
	Tunneled        bool
	// ShouldCreateBridge is set for vif_type bridge (in meta, up to 2026.1).
	ShouldCreateBridge bool
	Subnets            []VIFSubnet
}

// VIFSubnet is a subnet in which a VIF has addresses.
type VIFSubnet struct {
	CIDR            string
	Version         int    // 4 or 6
	Gateway         string // empty: none
	DNS             []string
	IPs             []VIFAddress
	Routes          []HostRoute
	DHCPServer      string // empty: none known
	EnableDHCP      bool   // in meta from 2023.1 on
	IPv6AddressMode string
}

// VIFAddress is a fixed address with the floating ones bound to it.
type VIFAddress struct {
	Address  string
	Floating []string
}
