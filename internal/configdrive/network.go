package configdrive

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// exposedTypes are the vif types that guests are told; all others are "phy"
// (nova/network/model.py:LEGACY_EXPOSED_VIF_TYPES).
var exposedTypes = []string{"bridge", "dvs", "hw_veb", "hyperv", "ovs", "tap", "vhostuser", "vif"}

// networkData is network_data.json.
type networkData struct {
	Links    []link    `json:"links"`
	Networks []network `json:"networks"`
	Services []service `json:"services"`
}

type link struct {
	ID    string `json:"id"`
	VIFID string `json:"vif_id"`
	Type  string `json:"type"`
	MTU   *int   `json:"mtu"`
	MAC   string `json:"ethernet_mac_address"`
}

// network is an address of the server, or the hint to ask for one by DHCP, which leaves the rest out.
type network struct {
	ID        string     `json:"id"`
	Type      string     `json:"type"`
	Link      string     `json:"link"`
	IPAddress string     `json:"ip_address,omitempty"`
	Netmask   string     `json:"netmask,omitempty"`
	Routes    *[]route   `json:"routes,omitempty"`
	NetworkID string     `json:"network_id"`
	Services  *[]service `json:"services,omitempty"`
}

type route struct {
	Network string `json:"network"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
}

type service struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

// describeNetwork makes network_data.json; {} without interfaces. Of an interface the
// first subnet of each address family counts (nova/virt/netutils.py:get_network_metadata).
func describeNetwork(vifs []VIF) (any, error) {
	if len(vifs) == 0 {
		return map[string]any{}, nil
	}
	d := networkData{Links: []link{}, Networks: []network{}, Services: []service{}}
	number := -1
	for i := range vifs {
		v := &vifs[i]
		if len(v.Subnets) == 0 {
			continue
		}
		number++
		id := v.DevName
		if id == "" {
			id = "interface" + strconv.Itoa(number)
		}
		d.Links = append(d.Links, v.link(id))
		for _, version := range []int{4, 6} {
			at := slices.IndexFunc(v.Subnets, func(s Subnet) bool { return s.Version == version })
			if at < 0 || len(v.Subnets[at].IPs) == 0 {
				continue
			}
			s := &v.Subnets[at]
			n, err := s.network(v, id, len(d.Networks))
			if err != nil {
				return nil, err
			}
			d.Networks = append(d.Networks, n)
			for _, dns := range s.services() {
				if !slices.Contains(d.Services, dns) {
					d.Services = append(d.Services, dns)
				}
			}
		}
	}
	return d, nil
}

// link leaves the MTU to DHCP where there is some.
func (v *VIF) link(id string) link {
	l := link{ID: id, VIFID: v.ID, Type: "phy", MTU: v.MTU, MAC: v.MAC}
	if slices.Contains(exposedTypes, v.Type) {
		l.Type = v.Type
	}
	if slices.ContainsFunc(v.Subnets, func(s Subnet) bool { return s.DHCPServer != "" }) {
		l.MTU = nil
	}
	return l
}

func (s *Subnet) network(v *VIF, linkID string, number int) (network, error) {
	n := network{ID: "network" + strconv.Itoa(number), Type: "ipv" + strconv.Itoa(s.Version), Link: linkID, NetworkID: v.NetworkID}
	switch {
	case s.IPv6AddressMode != "":
		n.Type += "_" + s.IPv6AddressMode
	case s.DHCPServer != "" || s.EnableDHCP:
		n.Type += "_dhcp"
		return n, nil
	}
	_, mask, err := split(s.CIDR)
	if err != nil {
		return n, err
	}
	n.IPAddress, n.Netmask = s.IPs[0], mask
	routes := []route{}
	if s.Gateway != "" {
		anywhere := map[int]string{4: "0.0.0.0", 6: "::"}[s.Version]
		routes = append(routes, route{anywhere, anywhere, s.Gateway})
	}
	for _, r := range s.Routes {
		to, mask, err := split(r.CIDR)
		if err != nil {
			return n, err
		}
		routes = append(routes, route{to, mask, r.Gateway})
	}
	services := s.services()
	n.Routes, n.Services = &routes, &services
	return n, nil
}

func (s *Subnet) services() []service {
	out := []service{}
	for _, address := range s.DNS {
		out = append(out, service{"dns", address})
	}
	return out
}

// split gives the network address and the mask of a CIDR, the mask in the family's own notation.
func split(cidr string) (address, mask string, err error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return "", "", fmt.Errorf("read subnet: %w", err)
	}
	return p.Masked().Addr().String(), net.IP(net.CIDRMask(p.Bits(), p.Addr().BitLen())).String(), nil
}
