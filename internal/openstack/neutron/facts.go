package neutron

import (
	"context"
	"fmt"
	"net/url"
)

// facts are what network info needs to know about networks beside the ports.
type facts struct {
	providers map[string]providerNet // by network id
	subnets   map[string]Subnet      // by id
	dhcp      map[string]string      // subnet id -> address of its DHCP server
}

// providerNet is the provider side of a network. It does not change while the
// network exists: ML2 refuses to update it.
type providerNet struct {
	physical string // empty: none
	tunneled bool
}

// maxProviders bounds the cache of provider networks; a host sees few.
const maxProviders = 4096

// readFacts reads what is to be known about some networks.
func (c *Client) readFacts(ctx context.Context, networkIDs []string) (*facts, error) {
	var f facts
	var err error
	if f.providers, err = c.providerNets(ctx, networkIDs); err != nil {
		return nil, err
	}
	if f.subnets, err = c.subnetsOf(ctx, networkIDs); err != nil {
		return nil, err
	}
	if f.dhcp, err = c.dhcpServers(ctx, networkIDs); err != nil {
		return nil, err
	}
	return &f, nil
}

func (c *Client) subnetsOf(ctx context.Context, networkIDs []string) (map[string]Subnet, error) {
	all, err := list[Subnet](ctx, c, asAdmin, "subnets", "network_id", networkIDs, nil)
	if err != nil {
		return nil, fmt.Errorf("list subnets: %w", err)
	}
	byID := make(map[string]Subnet, len(all))
	for _, s := range all {
		byID[s.ID] = s
	}
	return byID, nil
}

// dhcpServers returns the address of a DHCP server per subnet, the last that
// Neutron lists, as Nova takes it (nova/network/neutron.py:_get_subnets_from_port).
// OVN has no such ports.
func (c *Client) dhcpServers(ctx context.Context, networkIDs []string) (map[string]string, error) {
	ports, err := list[Port](ctx, c, asAdmin, "ports", "network_id", networkIDs, url.Values{
		"device_owner": {"network:dhcp"}, "fields": {"id", "fixed_ips"},
	})
	if err != nil {
		return nil, fmt.Errorf("list dhcp ports: %w", err)
	}
	servers := make(map[string]string)
	for _, p := range ports {
		seen := make(map[string]bool, len(p.FixedIPs)) // the first address of each port counts
		for _, ip := range p.FixedIPs {
			if !seen[ip.SubnetID] {
				seen[ip.SubnetID] = true
				servers[ip.SubnetID] = ip.IPAddress
			}
		}
	}
	return servers, nil
}

// providerNets returns the provider side of networks, from memory where known
// (nova/network/neutron.py:_get_physnet_tunneled_info).
func (c *Client) providerNets(ctx context.Context, networkIDs []string) (map[string]providerNet, error) {
	found := make(map[string]providerNet, len(networkIDs))
	var unknown []string
	c.mu.Lock()
	for _, id := range networkIDs {
		if p, ok := c.providers[id]; ok {
			found[id] = p
		} else {
			unknown = append(unknown, id)
		}
	}
	c.mu.Unlock()
	if len(unknown) == 0 {
		return found, nil
	}
	// Fields that Neutron does not have are left out of the answer without an error.
	networks, err := list[Network](ctx, c, asAdmin, "networks", "id", unknown, url.Values{
		"fields": {"id", "segments", "provider:physical_network", "provider:network_type"},
	})
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	for i := range networks {
		p, err := networks[i].provider()
		if err != nil {
			return nil, err
		}
		found[networks[i].ID] = p
		c.remember(networks[i].ID, p)
	}
	return found, nil
}

func (c *Client) remember(id string, p providerNet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.providers) >= maxProviders {
		clear(c.providers)
	}
	c.providers[id] = p
}

// provider takes the first segment with a physical network, or the network's own attributes.
func (n *Network) provider() (providerNet, error) {
	for _, s := range n.Segments {
		if s.PhysicalNetwork != "" {
			return providerNet{physical: s.PhysicalNetwork}, nil
		}
	}
	if len(n.Segments) > 0 {
		return providerNet{}, fmt.Errorf("network %s: none of its segments has a physical network", n.ID)
	}
	switch n.NetworkType {
	case "vxlan", "gre", "geneve":
		return providerNet{physical: n.PhysicalNetwork, tunneled: true}, nil
	}
	return providerNet{physical: n.PhysicalNetwork}, nil
}
