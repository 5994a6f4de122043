package neutron

import (
	"context"
	"maps"
	"net/http"
	"net/url"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// keyMigratingTo is the key of binding:profile that names the host to which a
// port is about to move.
const keyMigratingTo = "migrating_to"

// BindRequest asks to bind the ports that a server has to another host.
type BindRequest struct {
	InstanceUUID     string
	ProjectID        string
	AvailabilityZone string // empty: none
	Host             string
	// ProviderMapping is as in AllocateRequest.
	ProviderMapping map[string][]string
	// LiveMigration: the conductor has already chosen the providers of resource requests.
	LiveMigration bool
}

// BindToHost binds the ports of a server to a host after a move, or again where
// the binding was lost; ports that are bound to it well are left alone
// (nova/network/neutron.py:_update_port_binding_for_instance).
func (c *Client) BindToHost(ctx context.Context, r BindRequest) error {
	ports, err := c.Ports(ctx, r.InstanceUUID, r.ProjectID)
	if err != nil {
		return err
	}
	known, err := c.knownExtensions(ctx)
	if err != nil {
		return err
	}
	changes := make(map[string]map[string]any, len(ports))
	var ids []string
	for i := range ports {
		change, err := r.change(&ports[i], known)
		if err != nil {
			return err
		}
		if len(change) > 0 {
			changes[ports[i].ID] = change
			ids = append(ids, ports[i].ID)
		}
	}
	return eachPort(ids, func(id string) error {
		_, err := c.updatePort(ctx, asAdmin, id, changes[id])
		return err
	})
}

// change is what a port needs to be bound to the host; nil for nothing.
func (r *BindRequest) change(p *Port, known extensionSet) (map[string]any, error) {
	change := make(map[string]any)
	profile := maps.Clone(p.Profile)
	if p.HostID != r.Host || p.VIFType == vifTypeUnbound || p.VIFType == vifTypeBindingFailed {
		change["binding:host_id"] = r.Host
		change["device_owner"] = deviceOwner(r.AvailabilityZone)
		if to, ok := profile[keyMigratingTo]; ok && to != "" {
			delete(profile, keyMigratingTo)
			change["binding:profile"] = profile
		}
	}
	if r.LiveMigration || !hasResourceRequest(p, known) {
		return change, nil
	}
	moved := *p
	moved.Profile = profile
	profile, err := profileWithAllocation(&moved, known, r.ProviderMapping)
	if err != nil {
		return nil, err
	}
	change["binding:profile"] = profile
	return change, nil
}

// ActivateBindings makes the bindings that ports have on a host the active
// ones. A port without such a binding ends it without an error: then the move
// does not use them, and BindToHost will follow
// (nova/network/neutron.py:migrate_instance_start).
func (c *Client) ActivateBindings(ctx context.Context, portIDs []string, host string) error {
	known, err := c.knownExtensions(ctx)
	if err != nil || !known[extBindingExtended] {
		return err
	}
	for _, id := range portIDs {
		var body struct{ Binding struct{ Status string } }
		err := c.do(ctx, asAdmin, http.MethodGet, bindingPath(id, host), nil, nil, &body)
		if openstack.Status(err) == http.StatusNotFound {
			return nil
		}
		if err != nil {
			reqctx.Log(ctx).WithError(err).WithField("port_id", id).Error("port binding not read, the port is bound later")
			continue
		}
		if body.Binding.Status == "ACTIVE" {
			continue
		}
		err = c.do(ctx, asAdmin, http.MethodPut, bindingPath(id, host)+"/activate", nil, nil, nil)
		if err != nil && openstack.Status(err) != http.StatusConflict { // 409: active already
			return &Error{Sentinel: ErrBindingActivationFailed, ID: id, Value: host, Cause: err}
		}
	}
	return nil
}

func bindingPath(portID, host string) string {
	return "/ports/" + url.PathEscape(portID) + "/bindings/" + url.PathEscape(host)
}
