package object

import "encoding/json"

// NetworkInfo is the list of an instance's VIFs, the content of
// InstanceInfoCache.network_info (nova/network/model.py). Its text form, key order
// included, is the one that Nova writes.
type NetworkInfo []VIF

// Text gives the form that is stored in network_info, "[]" for none.
func (n NetworkInfo) Text() (string, error) {
	if n == nil {
		n = NetworkInfo{}
	}
	b, err := pythonJSON(n)
	return string(b), err
}

// ByID returns the VIF of a port; nil when it is not in the list.
func (n NetworkInfo) ByID(portID string) *VIF {
	for i := range n {
		if n[i].ID == portID {
			return &n[i]
		}
	}
	return nil
}

// VIF is one port of an instance, as bound on its host (model.py:VIF).
type VIF struct {
	ID               string          `json:"id"`      // port id
	Address          string          `json:"address"` // MAC
	Network          Network         `json:"network"`
	Type             string          `json:"type"`    // binding:vif_type, e.g. "ovs", "bridge"
	Details          Dict            `json:"details"` // binding:vif_details
	DevName          string          `json:"devname"` // tap name, 14 characters
	OVSInterfaceID   string          `json:"ovs_interfaceid"`
	QBHParams        json.RawMessage `json:"qbh_params"` // null since years
	QBGParams        json.RawMessage `json:"qbg_params"`
	Active           bool            `json:"active"`
	VNICType         string          `json:"vnic_type"`
	Profile          Dict            `json:"profile"`            // binding:profile
	PreserveOnDelete bool            `json:"preserve_on_delete"` // the user's port: unbound, not deleted
	DelegateCreate   bool            `json:"delegate_create"`    // true: we create the device
	Meta             Dict            `json:"meta"`

	unknown Dict // keys that the model does not have
}

// Network is the network of a VIF (model.py:Network).
type Network struct {
	ID      string   `json:"id"`
	Bridge  string   `json:"bridge"`
	Label   string   `json:"label"` // the network's name
	Subnets []Subnet `json:"subnets"`
	Meta    Dict     `json:"meta"` // injected, tenant_id, mtu, physical_network, tunneled, [should_create_bridge]

	unknown Dict // keys that the model does not have
}

// MTU is the network's MTU; 0 when unknown.
func (n *Network) MTU() int { return n.Meta.Int("mtu") }

// Subnet is one subnet with the VIF's addresses in it (model.py:Subnet).
type Subnet struct {
	CIDR    string    `json:"cidr"`
	DNS     []IP      `json:"dns"`
	Gateway *IP       `json:"gateway"` // an IP with an empty Address when the subnet has none
	IPs     []FixedIP `json:"ips"`
	Routes  []Route   `json:"routes"`
	Version int       `json:"version"` // 4 or 6
	Meta    Dict      `json:"meta"`    // [ipv6_address_mode], [enable_dhcp], [dhcp_server]

	unknown Dict // keys that the model does not have
}

// IP is an address; Type is "dns", "gateway" or "floating" (model.py:IP).
type IP struct {
	Address string `json:"address"`
	Type    string `json:"type"`
	Version int    `json:"version"`
	Meta    Dict   `json:"meta"`

	unknown Dict // keys that the model does not have
}

// FixedIP is an address of the port itself, type "fixed" (model.py:FixedIP).
type FixedIP struct {
	Address     string `json:"address"`
	Type        string `json:"type"`
	Version     int    `json:"version"`
	Meta        Dict   `json:"meta"`
	FloatingIPs []IP   `json:"floating_ips"`

	unknown Dict // keys that the model does not have
}

// Route is a host route of a subnet (model.py:Route).
type Route struct {
	CIDR      string          `json:"cidr"`
	Gateway   *IP             `json:"gateway"`
	Interface json.RawMessage `json:"interface"` // null, never set by Nova
	Meta      Dict            `json:"meta"`

	unknown Dict // keys that the model does not have
}
