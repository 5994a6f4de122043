package neutron

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Port returns a port as an administrator sees it, or ErrPortNotFound.
func (c *Client) Port(ctx context.Context, id string) (*Port, error) {
	var body portBody
	err := c.do(ctx, asAdmin, http.MethodGet, "/ports/"+url.PathEscape(id), nil, nil, &body)
	if openstack.Status(err) == http.StatusNotFound {
		return nil, &Error{Sentinel: ErrPortNotFound, ID: id, Cause: err}
	}
	if err != nil {
		return nil, fmt.Errorf("show port %s: %w", id, err)
	}
	return &body.Port, nil
}

// Ports returns the ports of a server as an administrator sees them, in
// Neutron's order. ProjectID narrows the search; empty: any project.
func (c *Client) Ports(ctx context.Context, instanceUUID, projectID string) ([]Port, error) {
	query := url.Values{"device_id": {instanceUUID}}
	if projectID != "" {
		query.Set("tenant_id", projectID)
	}
	ports, err := list[Port](ctx, c, asAdmin, "ports", "", nil, query)
	if err != nil {
		return nil, fmt.Errorf("list ports of server %s: %w", instanceUUID, err)
	}
	return ports, nil
}

func (c *Client) portsByID(ctx context.Context, ids []string) (map[string]Port, error) {
	ports, err := list[Port](ctx, c, asAdmin, "ports", "id", ids, nil)
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	byID := make(map[string]Port, len(ports))
	for _, p := range ports {
		byID[p.ID] = p
	}
	return byID, nil
}

// Deallocate frees the ports of a server: those in preserve are unbound and
// stay, the others are deleted (nova/network/neutron.py:deallocate_for_instance).
// Ports that are gone are no error, so it can be repeated. A port that could
// not be deleted is an error; one that could not be unbound is only logged, as in Nova.
func (c *Client) Deallocate(ctx context.Context, instanceUUID string, preserve []string) error {
	type ref struct{ ID string }
	ports, err := list[ref](ctx, c, asUser, "ports", "", nil, url.Values{"device_id": {instanceUUID}, "fields": {"id"}})
	if errors.Is(err, ErrUnauthorized) {
		// The token has expired since the request came, yet the server is to go.
		ports, err = list[ref](ctx, c, asAdmin, "ports", "", nil, url.Values{"device_id": {instanceUUID}, "fields": {"id"}})
	}
	if err != nil {
		return fmt.Errorf("list ports of server %s: %w", instanceUUID, err)
	}
	var created []string
	for _, p := range ports {
		if !slices.Contains(preserve, p.ID) {
			created = append(created, p.ID)
		}
	}
	group := errgroup.Group{}
	group.Go(func() error {
		if err := c.Unbind(ctx, instanceUUID, preserve, true); err != nil {
			reqctx.Log(ctx).WithError(err).Error("ports to be preserved are not released")
		}
		return nil
	})
	group.Go(func() error { return c.deletePorts(ctx, created) })
	return group.Wait()
}

// DeletePort deletes a port; one that is gone is no error.
func (c *Client) DeletePort(ctx context.Context, id string) error {
	return c.deletePorts(ctx, []string{id})
}

func (c *Client) deletePorts(ctx context.Context, ids []string) error {
	return eachPort(ids, func(id string) error {
		path := "/ports/" + url.PathEscape(id)
		err := c.do(ctx, asUser, http.MethodDelete, path, nil, nil, nil)
		if errors.Is(err, ErrUnauthorized) {
			err = c.do(ctx, asAdmin, http.MethodDelete, path, nil, nil, nil) // as in Deallocate
		}
		if err != nil && openstack.Status(err) != http.StatusNotFound {
			return fmt.Errorf("delete port %s: %w", id, err)
		}
		return nil
	})
}

// deviceKeys are the keys of binding:profile that belong to a binding and go
// with it (nova/network/neutron.py:_unbind_ports).
var deviceKeys = []string{
	"pci_vendor_info", "pci_slot", keyAllocation, "arq_uuid", "physical_network", "card_serial_number",
	"vf_num", "pf_mac_address", "device_mac_address",
}

// Unbind takes ports from their host and, with detach, from their server (a
// shelved server keeps them). Ports that are gone, or that are not the server's
// (a build that failed because its port was taken must not take it from the
// owner), are left alone.
//
// Profiles are read as an administrator: Nova reads them as the user, who is
// not shown them, and so wipes what others keep there.
func (c *Client) Unbind(ctx context.Context, instanceUUID string, ids []string, detach bool) error {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == "" })
	if len(ids) == 0 {
		return nil
	}
	ports, err := c.portsByID(ctx, ids)
	if err != nil {
		return err
	}
	maps.DeleteFunc(ports, func(_ string, p Port) bool { return p.DeviceID != instanceUUID })
	if len(ports) == 0 {
		return nil
	}
	var domains map[string]string
	dns := false
	if detach {
		if dns, domains, err = c.dnsDomains(ctx, ports); err != nil {
			return err
		}
	}
	return eachPort(slices.Sorted(maps.Keys(ports)), func(id string) error {
		port := ports[id]
		external := dns && domains[port.NetworkID] != ""
		_, err := c.updatePort(ctx, asAdmin, id, unbinding(&port, detach, dns && !external))
		if err == nil && external {
			// The record is in the user's zone.
			_, err = c.updatePort(ctx, asUser, id, map[string]any{"dns_name": ""})
		}
		if err != nil && !errors.Is(err, ErrPortNotFound) {
			return fmt.Errorf("unbind: %w", err)
		}
		return nil
	})
}

// unbinding is what takes a port from its host.
func unbinding(p *Port, detach, resetName bool) map[string]any {
	profile := maps.Clone(p.Profile)
	maps.DeleteFunc(profile, func(key string, _ any) bool { return slices.Contains(deviceKeys, key) })
	if profile == nil {
		profile = map[string]any{} // null would not be taken for empty
	}
	changes := map[string]any{"binding:host_id": nil, "binding:profile": profile}
	if detach {
		changes["device_id"], changes["device_owner"] = "", ""
	}
	if resetName {
		changes["dns_name"] = ""
	}
	return changes
}

// dnsDomains tells whether ports have names and which networks put them into an external zone.
func (c *Client) dnsDomains(ctx context.Context, ports map[string]Port) (bool, map[string]string, error) {
	known, err := c.knownExtensions(ctx)
	if err != nil || !known[extDNS] {
		return false, nil, err
	}
	var ids []string
	for _, p := range ports {
		if !slices.Contains(ids, p.NetworkID) {
			ids = append(ids, p.NetworkID)
		}
	}
	networks, err := list[Network](ctx, c, asAdmin, "networks", "id", ids, url.Values{"fields": {"id", "dns_domain"}})
	if err != nil {
		return false, nil, fmt.Errorf("list networks: %w", err)
	}
	domains := make(map[string]string, len(networks))
	for _, n := range networks {
		domains[n.ID] = n.DNSDomain
	}
	return true, domains, nil
}

// eachPort calls fn for all ports, some at once, and joins the errors.
func eachPort(ids []string, fn func(id string) error) error {
	errs := make([]error, len(ids))
	group := errgroup.Group{}
	group.SetLimit(parallelPorts)
	for i, id := range ids {
		group.Go(func() error {
			errs[i] = fn(id)
			return nil
		})
	}
	_ = group.Wait() // the functions return nil; their errors are in errs
	return errors.Join(errs...)
}
