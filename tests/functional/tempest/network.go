package main

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"strings"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// The external network, where floating addresses are from: a network without a way out, whose gateway is this machine.
const (
	publicNetwork = "tempest-public"
	publicCIDR    = "10.78.0.0/24"
	publicGateway = "10.78.0.1"
)

// Where the subnets of networks are from that Nova has made for a project without any.
const (
	autoPool  = "tempest-auto"
	autoRange = "10.79.0.0/16"
)

type object = map[string]any

// makePublicNetwork makes the external network, unless it is there, gives this machine an address in it, and returns its id.
func (j *judge) makePublicNetwork(ctx context.Context) (string, error) {
	id, err := j.Admin.NetworkID(ctx, publicNetwork)
	if err != nil {
		return "", err
	}
	if id == "" {
		var network struct{ Network struct{ ID string } }
		err := j.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/networks", object{"network": object{
			"name": publicNetwork, "router:external": true, "provider:network_type": "local",
		}}, &network)
		if err != nil {
			return "", err
		}
		id = network.Network.ID
		err = j.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/subnets", object{"subnet": object{
			"network_id": id, "ip_version": 4, "cidr": publicCIDR, "gateway_ip": publicGateway, "enable_dhcp": false,
		}}, nil)
		if err != nil {
			return "", err
		}
	}
	// Networks that are made for a project lead to the default one.
	if err := j.Admin.Do(ctx, http.MethodPut, cloud.Network, "/v2.0/networks/"+id, object{"network": object{"is_default": true}}, nil); err != nil {
		return "", err
	}
	// Neutron's agent takes a bridge that is there already.
	bridge := "brq" + id[:11]
	for _, args := range [][]string{
		{"link", "show", bridge},
		{"link", "add", bridge, "type", "bridge"},
		{"address", "replace", publicGateway + "/24", "dev", bridge},
		{"link", "set", bridge, "up"},
	} {
		if args[1] == "add" && err == nil {
			continue
		}
		var out []byte
		if out, err = exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil && args[1] != "show" {
			return "", fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return id, nil
}

// makeAutoPool makes the pool that subnets come from where nobody names one, unless it is there.
func (j *judge) makeAutoPool(ctx context.Context) error {
	var found struct {
		Pools []any `json:"subnetpools"`
	}
	if err := j.Admin.Do(ctx, http.MethodGet, cloud.Network, "/v2.0/subnetpools?name="+autoPool, nil, &found); err != nil || len(found.Pools) > 0 {
		return err
	}
	return j.Admin.Do(ctx, http.MethodPost, cloud.Network, "/v2.0/subnetpools", object{"subnetpool": object{
		"name": autoPool, "prefixes": []string{autoRange}, "default_prefixlen": 26, "is_default": true, "shared": true,
	}}, nil)
}

// share says whether every project may use the network that the control plane has for all.
func (j *judge) share(ctx context.Context, shared bool) error {
	return j.Admin.Do(ctx, http.MethodPut, cloud.Network, "/v2.0/networks/"+j.Network, object{"network": object{"shared": shared}}, nil)
}

// extensions are the aliases of the network API's extensions that the control plane has.
func (j *judge) extensions(ctx context.Context) (string, error) {
	var answer struct{ Extensions []struct{ Alias string } }
	err := j.Admin.Do(ctx, http.MethodGet, cloud.Network, "/v2.0/extensions", nil, &answer)
	aliases := make([]string, 0, len(answer.Extensions))
	for _, extension := range answer.Extensions {
		aliases = append(aliases, extension.Alias)
	}
	return strings.Join(aliases, ","), err
}

// removeRouters takes away what a run that was cut short has left of routers and floating addresses, and says how many routers there were.
// Neutron's L3 agent sets up all that it finds when it starts side by side, and eventlet does not survive that: it stands still from then on.
func (j *judge) removeRouters(ctx context.Context) (int, error) {
	var found struct {
		FloatingIPs []struct{ ID string } `json:"floatingips"`
		Routers     []struct{ ID string }
	}
	for _, kind := range []string{"floatingips", "routers"} {
		if err := j.Admin.Do(ctx, http.MethodGet, cloud.Network, "/v2.0/"+kind, nil, &found); err != nil {
			return 0, err
		}
	}
	for _, f := range found.FloatingIPs {
		if err := j.Admin.Do(ctx, http.MethodDelete, cloud.Network, "/v2.0/floatingips/"+f.ID, nil, nil); err != nil {
			return 0, err
		}
	}
	for _, r := range found.Routers {
		if err := j.removeRouter(ctx, r.ID); err != nil {
			return 0, fmt.Errorf("remove router %s: %w", r.ID, err)
		}
	}
	return len(found.Routers), nil
}

func (j *judge) removeRouter(ctx context.Context, id string) error {
	path := "/v2.0/routers/" + id
	if err := j.Admin.Do(ctx, http.MethodPut, cloud.Network, path, object{"router": object{"external_gateway_info": object{}}}, nil); err != nil {
		return err
	}
	ports, err := j.Admin.Ports(ctx, "device_id="+id)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := j.Admin.Do(ctx, http.MethodPut, cloud.Network, path+"/remove_router_interface", object{"port_id": p.ID}, nil); err != nil {
			return err
		}
	}
	return j.Admin.Do(ctx, http.MethodDelete, cloud.Network, path, nil, nil)
}
