package neutron

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// vif types that say that a port is not bound.
const (
	vifTypeBindingFailed = "binding_failed"
	vifTypeUnbound       = "unbound"
)

// keyAllocation is the key of binding:profile that says which resource
// providers fulfil the port's resource request.
const keyAllocation = "allocation"

// AllocateForInstance gives a server its ports, bound to its host: it checks the
// request, creates what ports are missing and binds all of them, ports in
// parallel (nova/network/neutron.py:allocate_for_instance). Without any network
// to use the answer has no ports.
//
// When it fails nothing stays behind: created ports are deleted and the user's
// own are released, also after OnBound was called for them; the caller undoes
// what OnBound did.
//
// A request whose token has the admin role gets each port created and bound in
// one call. For others the port is created with the user's token and then bound
// with [neutron]'s, so that the operator's policy for tenants applies. The
// context must not be an elevated one.
func (c *Client) AllocateForInstance(ctx context.Context, r AllocateRequest) (*Allocation, error) {
	if r.ProjectID == "" {
		return nil, errors.New("allocate ports: the server has no project")
	}
	p, err := c.check(ctx, &r)
	if err != nil {
		return nil, fmt.Errorf("check networks of the request: %w", err)
	}
	a := &allocation{client: c, request: &r, plan: p, ports: make([]AllocatedPort, len(p.entries))}
	if len(p.entries) == 0 {
		return &Allocation{Networks: p.networks}, nil
	}
	started := time.Now()
	if err := a.run(ctx); err != nil {
		a.undo(ctx)
		return nil, err
	}
	reqctx.Log(ctx).WithField("ports", len(a.ports)).WithField("elapsed", time.Since(started).Seconds()).Debug("ports bound")
	return &Allocation{Ports: a.ports, Networks: p.networks}, nil
}

// allocation is an AllocateForInstance under way.
type allocation struct {
	client  *Client
	request *AllocateRequest
	plan    *plan
	ports   []AllocatedPort // each written by the goroutine of its entry

	mu       sync.Mutex // guards the fields below
	created  []string   // ports to be deleted on failure
	attached []string   // ports to be released on failure
}

// run works on all entries at once. After a failure no further call begins, but
// one that is under way is seen through: a creation that is given up may happen
// all the same, and then nobody would know of the port.
func (a *allocation) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelPorts)
	for i := range a.plan.entries {
		group.Go(func() error {
			port, err := a.one(ctx, &a.plan.entries[i])
			if err != nil {
				return err
			}
			port.Index = i
			a.ports[i] = *port
			if a.request.OnBound == nil {
				return nil
			}
			if err := a.request.OnBound(ctx, *port); err != nil {
				return fmt.Errorf("use port %s: %w", port.ID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// one creates the port of an entry if it has none, and binds it.
func (a *allocation) one(ctx context.Context, e *entry) (*AllocatedPort, error) {
	network := a.plan.networks[e.NetworkID]
	var port *Port
	var err error
	switch {
	case e.port != nil:
		a.note(&a.attached, e.port.ID)
		port, err = a.bind(ctx, e.port.ID, e.port, &network)
	case slices.Contains(reqctx.From(ctx).Roles, "admin"):
		port, err = a.createBound(ctx, e, &network)
	default:
		port, err = a.createThenBind(ctx, e, &network)
	}
	if err != nil {
		return nil, err
	}
	if a.plan.known[extDNS] && network.DNSDomain != "" {
		if err := a.setExternalName(ctx, port.ID); err != nil {
			return nil, err
		}
	}
	return &AllocatedPort{Port: *port, Tag: e.Tag, Created: e.port == nil, MTU: network.MTU}, nil
}

func (a *allocation) createThenBind(ctx context.Context, e *entry, network *Network) (*Port, error) {
	port, err := a.create(ctx, e, nil)
	if err != nil {
		return nil, err
	}
	return a.bind(ctx, port.ID, nil, network)
}

// createBound creates a port that is bound at once, which policy grants to
// administrators. If it does not, the two usual calls follow.
func (a *allocation) createBound(ctx context.Context, e *entry, network *Network) (*Port, error) {
	port, err := a.create(ctx, e, a.binding(network))
	if errors.Is(err, ErrForbidden) {
		return a.createThenBind(ctx, e, network)
	}
	if err != nil {
		return nil, err
	}
	if port.HostID != a.request.Host {
		return a.bind(ctx, port.ID, nil, network) // a token that may create but is not shown bindings
	}
	return port, nil
}

// create makes a port with the user's token. Device_id tells from the start for
// whom it is (nova/network/neutron.py:_create_port_minimal).
func (a *allocation) create(ctx context.Context, e *entry, more map[string]any) (*Port, error) {
	body := map[string]any{
		"device_id":      a.request.InstanceUUID,
		"network_id":     e.NetworkID,
		"admin_state_up": true,
		"tenant_id":      a.request.ProjectID,
	}
	if e.FixedIP != "" {
		body["fixed_ips"] = []FixedIP{{IPAddress: e.FixedIP}}
	}
	if len(a.plan.groups) > 0 {
		body["security_groups"] = a.plan.groups
	}
	maps.Copy(body, more)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var answer portBody
	err := a.client.do(context.WithoutCancel(ctx), asUser, http.MethodPost, "/ports", nil, map[string]any{"port": body}, &answer)
	if err != nil {
		return nil, createError(err, e.NetworkID, e.FixedIP)
	}
	port := &answer.Port
	a.note(&a.created, port.ID)
	switch {
	case hasResourceRequest(port, a.plan.known):
		return nil, &Error{Sentinel: ErrQoSNotSupported, ID: e.NetworkID}
	case port.VIFType == vifTypeBindingFailed:
		return nil, &Error{Sentinel: ErrBindingFailed, ID: port.ID}
	}
	return port, nil
}

// bind gives a port to the server and its host, as an administrator
// (nova/network/neutron.py:_update_ports_for_instance). Own is the port as the
// user brought it, nil for one just created.
func (a *allocation) bind(ctx context.Context, id string, own *Port, network *Network) (*Port, error) {
	body := a.binding(network)
	body["device_id"] = a.request.InstanceUUID
	if own != nil {
		profile, err := a.profile(own)
		if err != nil {
			return nil, err
		}
		if len(profile) > 0 {
			body["binding:profile"] = profile
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return a.client.updatePort(context.WithoutCancel(ctx), asAdmin, id, body)
}

func (a *allocation) binding(network *Network) map[string]any {
	body := map[string]any{
		"device_owner":    deviceOwner(a.request.AvailabilityZone),
		"binding:host_id": a.request.Host,
	}
	// A network with a dns_domain has its names in the user's own zone, see setExternalName.
	if a.plan.known[extDNS] && network.DNSDomain == "" {
		body["dns_name"] = a.request.Hostname
	}
	return body
}

// profile is the binding profile of the user's own port, with the providers of
// its resource request (nova/network/neutron.py:_get_binding_profile_allocation).
func (a *allocation) profile(own *Port) (map[string]any, error) {
	return profileWithAllocation(own, a.plan.known, a.request.ProviderMapping)
}

// setExternalName names the port with the user's token, in whose DNS zone the
// record goes (nova/network/neutron.py:_update_port_dns_name).
func (a *allocation) setExternalName(ctx context.Context, id string) error {
	_, err := a.client.updatePort(ctx, asUser, id, map[string]any{"dns_name": a.request.Hostname})
	if openstack.Status(err) == http.StatusBadRequest {
		return &Error{Sentinel: ErrInvalidDNSName, ID: a.request.Hostname, Cause: err}
	}
	return err
}

func (a *allocation) note(where *[]string, id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	*where = append(*where, id)
}

// undo deletes the ports that were created and releases the user's own. It goes
// on after the caller has given up, and what remains is logged: the caller
// reports the cause.
func (a *allocation) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := errors.Join(a.client.deletePorts(ctx, a.created), a.client.Unbind(ctx, a.request.InstanceUUID, a.attached, true)); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("ports of a failed allocation remain")
	}
}

type portBody struct {
	Port Port `json:"port"`
}

// updatePort changes a port and returns it. A port that then has no binding on
// its host is ErrBindingFailed.
func (c *Client) updatePort(ctx context.Context, as identity, id string, changes map[string]any) (*Port, error) {
	var answer portBody
	err := c.do(ctx, as, http.MethodPut, "/ports/"+url.PathEscape(id), nil, map[string]any{"port": changes}, &answer)
	if err != nil {
		return nil, updateError(err, id)
	}
	if answer.Port.VIFType == vifTypeBindingFailed {
		return nil, &Error{Sentinel: ErrBindingFailed, ID: id}
	}
	return &answer.Port, nil
}

// deviceOwner is "compute:" and the zone, or Python's None without one.
func deviceOwner(zone string) string {
	if zone == "" {
		zone = "None"
	}
	return "compute:" + zone
}

// resourceRequest is the field resource_request in the form of the extension
// port-resource-request-groups.
type resourceRequest struct {
	Groups []struct {
		ID string `json:"id"`
	} `json:"request_groups"`
}

func hasResourceRequest(p *Port, known extensionSet) bool {
	if known[extRequestGroups] {
		return len(requestGroups(p)) > 0
	}
	text := string(p.ResourceRequest)
	return text != "" && text != "null" && text != "{}"
}

func requestGroups(p *Port) []string {
	var r resourceRequest
	if len(p.ResourceRequest) == 0 || json.Unmarshal(p.ResourceRequest, &r) != nil {
		return nil
	}
	ids := make([]string, 0, len(r.Groups))
	for _, g := range r.Groups {
		ids = append(ids, g.ID)
	}
	return ids
}

// profileWithAllocation returns a copy of a port's binding profile in which
// "allocation" names the providers of its resource request, if it has one.
func profileWithAllocation(p *Port, known extensionSet, mapping map[string][]string) (map[string]any, error) {
	profile := maps.Clone(p.Profile)
	if !hasResourceRequest(p, known) {
		return profile, nil
	}
	if profile == nil {
		profile = make(map[string]any, 1)
	}
	provider := func(group string) (string, error) {
		if len(mapping[group]) == 0 {
			return "", &Error{Sentinel: ErrPortUpdateFailed, ID: p.ID, Value: "no resource provider for the request group " + group}
		}
		return mapping[group][0], nil
	}
	if !known[extRequestGroups] {
		uuid, err := provider(p.ID)
		profile[keyAllocation] = uuid
		return profile, err
	}
	chosen := make(map[string]string)
	for _, group := range requestGroups(p) {
		uuid, err := provider(group)
		if err != nil {
			return nil, err
		}
		chosen[group] = uuid
	}
	profile[keyAllocation] = chosen
	return profile, nil
}
