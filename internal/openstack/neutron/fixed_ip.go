package neutron

import (
	"context"
	"errors"
	"fmt"
	"net/url"
)

// AddFixedIP gives a server one more address on a network: the first of its
// ports there that Neutron agrees to extend, in the first subnet that has room
// (nova/network/neutron.py:add_fixed_ip_to_instance).
func (c *Client) AddFixedIP(ctx context.Context, instanceUUID, zone, networkID string) error {
	subnets, err := list[Subnet](ctx, c, asUser, "subnets", "network_id", []string{networkID}, nil)
	if err != nil {
		return fmt.Errorf("list subnets: %w", err)
	}
	ports, err := list[Port](ctx, c, asUser, "ports", "", nil, url.Values{
		"device_id": {instanceUUID}, "device_owner": {deviceOwner(zone)}, "network_id": {networkID},
	})
	if err != nil {
		return fmt.Errorf("list ports of server %s: %w", instanceUUID, err)
	}
	var refusals []error
	for i := range ports {
		for _, s := range subnets {
			ips := append(append([]FixedIP{}, ports[i].FixedIPs...), FixedIP{SubnetID: s.ID})
			_, err := c.updatePort(ctx, asUser, ports[i].ID, map[string]any{"fixed_ips": ips})
			if err == nil {
				return nil
			}
			refusals = append(refusals, err)
		}
	}
	return &Error{Sentinel: ErrNetworkNotAttached, ID: networkID, Cause: errors.Join(refusals...)}
}

// RemoveFixedIP takes an address from the server's port that has it
// (nova/network/neutron.py:remove_fixed_ip_from_instance, which only logs that
// Neutron refuses).
func (c *Client) RemoveFixedIP(ctx context.Context, instanceUUID, zone, address string) error {
	ports, err := list[Port](ctx, c, asUser, "ports", "", nil, url.Values{
		"device_id": {instanceUUID}, "device_owner": {deviceOwner(zone)}, "fixed_ips": {"ip_address=" + address},
	})
	if err != nil {
		return fmt.Errorf("list ports of server %s: %w", instanceUUID, err)
	}
	if len(ports) == 0 {
		return &Error{Sentinel: ErrFixedIPNotFound, ID: address}
	}
	left := []FixedIP{}
	for _, ip := range ports[0].FixedIPs {
		if ip.IPAddress != address {
			left = append(left, ip)
		}
	}
	_, err = c.updatePort(ctx, asUser, ports[0].ID, map[string]any{"fixed_ips": left})
	return err
}
