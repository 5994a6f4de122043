package neutron

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// plan is a request after its checks: one entry per interface, in request order.
type plan struct {
	entries  []entry
	networks map[string]Network // by id
	groups   []string           // security group ids
	known    extensionSet
}

// entry is one interface to be.
type entry struct {
	RequestedNetwork
	port *Port // the user's own, nil: to be created
}

// check validates a request with as few round trips as its parts depend on each
// other: ports, then networks; security groups and extensions beside them
// (nova/network/neutron.py:_validate_requested_port_ids,
// _validate_requested_network_ids, _process_security_groups).
func (c *Client) check(ctx context.Context, r *AllocateRequest) (*plan, error) {
	p := &plan{}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		p.known, err = c.knownExtensions(ctx)
		return err
	})
	group.Go(func() (err error) {
		p.groups, err = c.securityGroupIDs(ctx, r.ProjectID, r.SecurityGroups)
		return err
	})
	group.Go(func() (err error) {
		if p.entries, err = c.checkPorts(ctx, r); err != nil {
			return err
		}
		return c.checkNetworks(ctx, r, p)
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return p, p.checkGroups()
}

// checkGroups refuses what Neutron could not filter: groups on a network
// without port security, or port security on a network without addresses.
func (p *plan) checkGroups() error {
	for _, e := range p.entries {
		n := p.networks[e.NetworkID]
		secured := n.PortSecurityEnabled == nil || *n.PortSecurityEnabled
		if secured && len(n.Subnets) == 0 || !secured && len(p.groups) > 0 {
			return &Error{Sentinel: ErrSecurityGroupNotApplicable, ID: n.ID}
		}
	}
	return nil
}

// checkPorts reads the ports of the request as an administrator, who alone is
// shown their bindings and resource requests.
func (c *Client) checkPorts(ctx context.Context, r *AllocateRequest) ([]entry, error) {
	entries := make([]entry, 0, len(r.Networks))
	var ids []string
	for _, n := range r.Networks {
		if n.NetworkID == "" && n.PortID == "" {
			continue // "any", see onlyNetwork
		}
		entries = append(entries, entry{RequestedNetwork: n})
		if n.PortID != "" {
			ids = append(ids, n.PortID)
		}
	}
	if len(ids) == 0 {
		return entries, nil
	}
	ports, err := c.portsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	for i := range entries {
		e := &entries[i]
		if e.PortID == "" {
			continue
		}
		if e.port, err = usablePort(ports, e.PortID, r); err != nil {
			return nil, err
		}
		e.NetworkID = e.port.NetworkID
	}
	return entries, nil
}

func usablePort(ports map[string]Port, id string, r *AllocateRequest) (*Port, error) {
	p, ok := ports[id]
	switch {
	case !ok:
		return nil, &Error{Sentinel: ErrPortNotFound, ID: id}
	case p.ProjectID != r.ProjectID:
		return nil, &Error{Sentinel: ErrPortNotUsable, ID: id}
	case p.DeviceID != "":
		return nil, &Error{Sentinel: ErrPortInUse, ID: id}
	case p.DNSName != "" && p.DNSName != r.Hostname:
		return nil, &Error{Sentinel: ErrPortNotUsableDNS, ID: id, Value: p.DNSName}
	case p.VIFType == vifTypeBindingFailed:
		return nil, &Error{Sentinel: ErrBindingFailed, ID: id}
	}
	return &p, nil
}

// checkNetworks reads the networks of the plan, or finds the one to use when
// none was requested. A network that the user does not see is ErrNetworkNotFound;
// Nova leaves such an interface out without a word when others remain.
func (c *Client) checkNetworks(ctx context.Context, r *AllocateRequest, p *plan) error {
	var networks []Network
	var err error
	if len(p.entries) > 0 {
		networks, err = c.requestedNetworks(ctx, p.entries)
	} else {
		networks, err = c.onlyNetwork(ctx, r)
		if len(networks) == 1 {
			var unnamed RequestedNetwork
			if len(r.Networks) > 0 {
				unnamed = r.Networks[0]
			}
			unnamed.NetworkID = networks[0].ID
			p.entries = []entry{{RequestedNetwork: unnamed}}
		}
	}
	if err != nil {
		return err
	}
	p.networks = make(map[string]Network, len(networks))
	for _, n := range networks {
		if n.RouterExternal && !n.Shared && !r.AttachExternal {
			return &Error{Sentinel: ErrExternalNetworkForbidden, ID: n.ID}
		}
		p.networks[n.ID] = n
	}
	for _, e := range p.entries {
		if _, ok := p.networks[e.NetworkID]; !ok {
			return &Error{Sentinel: ErrNetworkNotFound, ID: e.NetworkID}
		}
	}
	return nil
}

func (c *Client) requestedNetworks(ctx context.Context, entries []entry) ([]Network, error) {
	var ids []string
	for _, e := range entries {
		if !slices.Contains(ids, e.NetworkID) {
			ids = append(ids, e.NetworkID)
		}
	}
	networks, err := list[Network](ctx, c, asUser, "networks", "id", ids, nil)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	return networks, nil
}

// onlyNetwork returns the single network that the project can use. More than
// one is an error; none at all is one only if an interface was asked for
// (nova/network/neutron.py:_get_available_networks).
func (c *Client) onlyNetwork(ctx context.Context, r *AllocateRequest) ([]Network, error) {
	own := url.Values{"tenant_id": {r.ProjectID}, "shared": {"False"}}
	if r.AutoAllocate {
		// Automatic allocation is not a transaction: half-made networks are down.
		own.Set("admin_state_up", "True")
	}
	var networks, shared []Network
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		networks, err = list[Network](gctx, c, asUser, "networks", "", nil, own)
		return err
	})
	group.Go(func() (err error) {
		shared, err = list[Network](gctx, c, asUser, "networks", "", nil, url.Values{"shared": {"True"}})
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	networks = append(networks, shared...)
	switch {
	case len(networks) > 1:
		return nil, &Error{Sentinel: ErrNetworkAmbiguous}
	case len(networks) == 0 && r.AutoAllocate:
		return c.autoAllocate(ctx, r.ProjectID)
	case len(networks) == 0 && len(r.Networks) > 0:
		return nil, &Error{Sentinel: ErrNoNetwork, ID: r.ProjectID}
	}
	return networks, nil
}

func (c *Client) autoAllocate(ctx context.Context, projectID string) ([]Network, error) {
	var topology struct {
		Topology struct{ ID string } `json:"auto_allocated_topology"`
	}
	// Neutron makes a network, a subnet and a router before it answers.
	err := c.request(ctx, asUser, openstack.Request{
		Method: http.MethodGet, Path: "/auto-allocated-topology/" + url.PathEscape(projectID), Into: &topology, Changes: true,
	})
	if openstack.Status(err) == http.StatusConflict {
		return nil, &Error{Sentinel: ErrUnableToAutoAllocate, ID: projectID, Cause: err}
	}
	if err != nil {
		return nil, fmt.Errorf("allocate network for project %s: %w", projectID, err)
	}
	var body struct{ Network Network }
	err = c.do(ctx, asUser, http.MethodGet, "/networks/"+url.PathEscape(topology.Topology.ID), nil, nil, &body)
	if openstack.Status(err) == http.StatusNotFound {
		return nil, &Error{Sentinel: ErrUnableToAutoAllocate, ID: projectID, Cause: err}
	}
	if err != nil {
		return nil, fmt.Errorf("show network %s: %w", topology.Topology.ID, err)
	}
	return []Network{body.Network}, nil
}
