package neutron

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

func request() AllocateRequest {
	return AllocateRequest{
		InstanceUUID: "instance", ProjectID: projectID, AvailabilityZone: "nova", Host: "vm", Hostname: "web",
		Networks: []RequestedNetwork{{NetworkID: netID}},
	}
}

func TestAllocateCalls(t *testing.T) {
	t.Parallel()
	const ext, nets = "admin GET /extensions?fields=alias", "user GET /networks?id=" + netID
	const post, put = `{"admin_state_up":true,"device_id":"instance","network_id":"` + netID + `","tenant_id":"` + projectID + `"}`,
		`{"binding:host_id":"vm","device_id":"instance","device_owner":"compute:nova"}`
	const onePost = `{"admin_state_up":true,"binding:host_id":"vm","device_id":"instance","device_owner":"compute:nova","network_id":"` + netID + `","tenant_id":"` + projectID + `"}`
	for _, tt := range []struct {
		name   string
		roles  []string
		change func(*AllocateRequest, *fakeNeutron)
		calls  []string // sorted
		bodies []string
	}{
		{
			"tenant",
			[]string{"member"},
			func(*AllocateRequest, *fakeNeutron) {},
			[]string{ext, "admin PUT /ports/port-1", nets, "user POST /ports"},
			[]string{post, put},
		},
		{
			"administrator",
			[]string{"reader", "admin"},
			func(*AllocateRequest, *fakeNeutron) {},
			[]string{ext, nets, "user POST /ports"},
			[]string{onePost},
		},
		{
			"administrator whom policy refuses",
			[]string{"admin"},
			func(_ *AllocateRequest, f *fakeNeutron) {
				f.answers["POST /ports"] = func(r *http.Request) (int, string) {
					if f.body(r)["binding:host_id"] != nil {
						return http.StatusForbidden, recorded(f.tb, "create-403-binding")
					}
					f.created++
					return http.StatusCreated, port(f.tb, "port-created", map[string]any{"id": "port-1"})
				}
			},
			[]string{ext, "admin PUT /ports/port-1", nets, "user POST /ports", "user POST /ports"},
			[]string{onePost, post, put},
		},
		{
			"no zone, an address, groups", nil, func(r *AllocateRequest, _ *fakeNeutron) {
				r.AvailabilityZone, r.SecurityGroups = "", []string{"default", "82c1030b-523c-48d2-b9f2-27dcd50e3e05"}
				r.Networks[0].FixedIP = "10.77.0.7"
			},
			[]string{ext, "admin PUT /ports/port-1", nets, "user GET /security-groups?fields=id&fields=name&tenant_id=" + projectID, "user POST /ports"},
			[]string{
				`{"admin_state_up":true,"device_id":"instance","fixed_ips":[{"ip_address":"10.77.0.7"}],"network_id":"` + netID + `",` +
					`"security_groups":["82c1030b-523c-48d2-b9f2-27dcd50e3e05","82c1030b-523c-48d2-b9f2-27dcd50e3e05"],"tenant_id":"` + projectID + `"}`,
				`{"binding:host_id":"vm","device_id":"instance","device_owner":"compute:None"}`,
			},
		},
		{
			"names of ports", nil, func(_ *AllocateRequest, f *fakeNeutron) {
				f.text("GET /extensions", 200, `{"extensions": [{"alias": "dns-integration"}]}`)
			},
			[]string{ext, "admin PUT /ports/port-1", nets, "user POST /ports"},
			[]string{post, `{"binding:host_id":"vm","device_id":"instance","device_owner":"compute:nova","dns_name":"web"}`},
		},
		{
			"names in the user's zone",
			[]string{"admin"},
			func(_ *AllocateRequest, f *fakeNeutron) {
				f.text("GET /extensions", 200, `{"extensions": [{"alias": "dns-integration"}]}`)
				f.text("GET /networks", 200, `{"networks": [{"id": "`+netID+`", "dns_domain": "example.org.", "subnets": ["s"]}]}`)
			},
			[]string{ext, nets, "user POST /ports", "user PUT /ports/port-1"},
			[]string{onePost, `{"dns_name":"web"}`},
		},
		{
			"any network", nil, func(r *AllocateRequest, f *fakeNeutron) {
				r.Networks = nil
				f.text("GET /networks?shared=False", 200, `{"networks": []}`)
			},
			[]string{ext, "admin PUT /ports/port-1", "user GET /networks?shared=False&tenant_id=" + projectID, "user GET /networks?shared=True", "user POST /ports"},
			[]string{post, put},
		},
		{
			"automatic network", nil, func(r *AllocateRequest, f *fakeNeutron) {
				r.Networks, r.AutoAllocate = nil, true
				f.text("GET /networks?", 200, `{"networks": []}`)
				f.text("GET /auto-allocated-topology/", 200, `{"auto_allocated_topology": {"id": "`+netID+`"}}`)
				f.text("GET /networks/", 200, `{"network": {"id": "`+netID+`", "subnets": ["s"]}}`)
			},
			[]string{
				ext, "admin PUT /ports/port-1", "user GET /auto-allocated-topology/" + projectID, "user GET /networks/" + netID,
				"user GET /networks?admin_state_up=True&shared=False&tenant_id=" + projectID, "user GET /networks?shared=True", "user POST /ports",
			},
			[]string{post, put},
		},
		{
			"the user's own port", nil, func(r *AllocateRequest, f *fakeNeutron) {
				r.Networks = []RequestedNetwork{{PortID: "own"}}
				f.text("GET /ports?id=own", 200, `{"ports": [{"id": "own", "tenant_id": "`+projectID+`", "network_id": "`+netID+`", "binding:profile": {"keep": 1}}]}`)
			},
			[]string{ext, "admin GET /ports?id=own", "admin PUT /ports/own", nets},
			[]string{`{"binding:host_id":"vm","binding:profile":{"keep":1},"device_id":"instance","device_owner":"compute:nova"}`},
		},
		{
			"own port with guaranteed bandwidth", nil, func(r *AllocateRequest, f *fakeNeutron) {
				r.Networks = []RequestedNetwork{{PortID: "own"}}
				r.ProviderMapping = map[string][]string{"g": {"provider"}}
				f.text("GET /extensions", 200, `{"extensions": [{"alias": "port-resource-request-groups"}]}`)
				f.text("GET /ports?id=own", 200, `{"ports": [{"id": "own", "tenant_id": "`+projectID+`", "network_id": "`+netID+`", "resource_request": {"request_groups": [{"id": "g"}]}}]}`)
			},
			[]string{ext, "admin GET /ports?id=own", "admin PUT /ports/own", nets},
			[]string{`{"binding:host_id":"vm","binding:profile":{"allocation":{"g":"provider"}},"device_id":"instance","device_owner":"compute:nova"}`},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, f := newFake(t)
			r := request()
			tt.change(&r, f)
			var bound []string
			r.OnBound = func(_ context.Context, p AllocatedPort) error {
				bound = append(bound, p.ID)
				return nil
			}
			a, err := c.AllocateForInstance(tenant(t, tt.roles...), r)
			require.NoError(t, err)
			require.Equal(t, tt.calls, f.asked(true))
			require.Equal(t, tt.bodies, f.sent())
			require.Len(t, a.Ports, 1)
			require.Equal(t, []string{a.Ports[0].ID}, bound)
			require.Equal(t, a.Ports[0].ID != "own", a.Ports[0].Created)
			require.Equal(t, "bridge", a.Ports[0].VIFType)
		})
	}
}

func TestWarm(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	require.NoError(t, c.Warm(t.Context()))
	require.Equal(t, []string{"admin GET /extensions?fields=alias"}, f.asked(false))
}

func TestAllocateKeepsTheOrder(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	r := request()
	r.Networks = []RequestedNetwork{{NetworkID: netID, Tag: "a"}, {NetworkID: netID, Tag: "b"}, {NetworkID: netID, Tag: "c"}}
	a, err := c.AllocateForInstance(tenant(t), r)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, []string{a.Ports[0].Tag, a.Ports[1].Tag, a.Ports[2].Tag})
	require.Empty(t, a.Preexisting())
	require.Len(t, f.asked(false), 2+3+3)
	// The extensions are known now.
	_, err = c.AllocateForInstance(tenant(t), request())
	require.NoError(t, err)
	require.Equal(t, []string{"user GET /networks?id=" + netID, "user POST /ports", "admin PUT /ports/port-4"}, f.asked(false))
}

func TestNoNetworkAtAll(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.text("GET /networks", 200, `{"networks": []}`)
	r := request()
	r.Networks = nil
	a, err := c.AllocateForInstance(tenant(t), r)
	require.NoError(t, err)
	require.Empty(t, a.Ports)
	vifs, err := c.NetworkInfo(tenant(t), InfoRequest{Allocation: a})
	require.NoError(t, err)
	require.Empty(t, vifs)

	r.Networks = []RequestedNetwork{{}}
	_, err = c.AllocateForInstance(tenant(t), r)
	require.ErrorIs(t, err, ErrNoNetwork)
}

func TestAllocateRefusals(t *testing.T) {
	t.Parallel()
	own := func(fields string) func(*AllocateRequest, *fakeNeutron) {
		return func(r *AllocateRequest, f *fakeNeutron) {
			r.Networks = []RequestedNetwork{{PortID: "own"}}
			f.text("GET /ports?id=own", 200, `{"ports": [{"id": "own", "network_id": "`+netID+`", `+fields+`}]}`)
		}
	}
	network := func(fields string) func(*AllocateRequest, *fakeNeutron) {
		return func(_ *AllocateRequest, f *fakeNeutron) {
			f.text("GET /networks", 200, `{"networks": [{"id": "`+netID+`", `+fields+`}]}`)
		}
	}
	answer := func(what string, status int, file string) func(*AllocateRequest, *fakeNeutron) {
		return func(r *AllocateRequest, f *fakeNeutron) {
			r.Networks[0].FixedIP = "10.77.0.99"
			f.file(what, status, file)
		}
	}
	mine := `"tenant_id": "` + projectID + `"`
	for _, tt := range []struct {
		name   string
		change func(*AllocateRequest, *fakeNeutron)
		want   error
		id     string
	}{
		{"no port", func(r *AllocateRequest, _ *fakeNeutron) { r.Networks = []RequestedNetwork{{PortID: "own"}} }, ErrPortNotFound, "own"},
		{"foreign port", own(`"tenant_id": "other"`), ErrPortNotUsable, "own"},
		{"port in use", own(mine + `, "device_id": "other"`), ErrPortInUse, "own"},
		{"port with another name", own(mine + `, "dns_name": "mail"`), ErrPortNotUsableDNS, "own"},
		{"port whose binding failed", own(mine + `, "binding:vif_type": "binding_failed"`), ErrBindingFailed, "own"},
		{"port without provider", own(mine + `, "resource_request": {"resources": {"NET_BW_EGR_KILOBIT_PER_SEC": 1}}`), ErrPortUpdateFailed, "own"},
		{"hidden network", func(_ *AllocateRequest, f *fakeNeutron) { f.text("GET /networks", 200, `{"networks": []}`) }, ErrNetworkNotFound, netID},
		{"external network", network(`"router:external": true, "subnets": ["s"]`), ErrExternalNetworkForbidden, netID},
		{"no subnet", network(`"subnets": []`), ErrSecurityGroupNotApplicable, netID},
		{"unsecured network with groups", func(r *AllocateRequest, f *fakeNeutron) {
			r.SecurityGroups = []string{"82c1030b-523c-48d2-b9f2-27dcd50e3e05"}
			network(`"port_security_enabled": false`)(r, f)
		}, ErrSecurityGroupNotApplicable, netID},
		{"several networks", func(r *AllocateRequest, _ *fakeNeutron) { r.Networks = nil }, ErrNetworkAmbiguous, ""},
		{"no automatic network", func(r *AllocateRequest, f *fakeNeutron) {
			r.Networks, r.AutoAllocate = nil, true
			f.text("GET /networks", 200, `{"networks": []}`)
			f.text("GET /auto-allocated-topology", 409, "")
		}, ErrUnableToAutoAllocate, projectID},
		{"unknown group", func(r *AllocateRequest, _ *fakeNeutron) { r.SecurityGroups = []string{"web"} }, ErrSecurityGroupNotFound, "web"},
		{"two groups of one name", func(r *AllocateRequest, f *fakeNeutron) {
			r.SecurityGroups = []string{"web"}
			f.text("GET /security-groups", 200, `{"security_groups": [{"id": "1", "name": "web"}, {"id": "2", "name": "web"}]}`)
		}, ErrSecurityGroupAmbiguous, "web"},
		{"quota", answer("POST /ports", 409, "create-409-quota"), ErrPortLimitExceeded, ""},
		{"address taken", answer("POST /ports", 409, "create-409-address"), ErrFixedIPInUse, "10.77.0.99"},
		{"address elsewhere", answer("POST /ports", 400, "create-400-address"), ErrFixedIPInvalid, "10.77.0.99"},
		{"network gone", answer("POST /ports", 404, "create-404-network"), ErrNetworkNotFound, netID},
		{"no address left", func(_ *AllocateRequest, f *fakeNeutron) {
			f.text("POST /ports", 409, `{"NeutronError": {"type": "IpAddressGenerationFailure", "message": "No more IP addresses available on network n."}}`)
		}, ErrNoMoreFixedIPs, netID},
		{"expired token", answer("GET /networks", 401, "unauthorized-401"), ErrUnauthorized, ""},
		{"guaranteed bandwidth", func(_ *AllocateRequest, f *fakeNeutron) {
			f.text("POST /ports", 201, `{"port": {"id": "port-1", "resource_request": {"request_groups": [{"id": "g"}]}}}`)
			f.text("GET /extensions", 200, `{"extensions": [{"alias": "port-resource-request-groups"}]}`)
		}, ErrQoSNotSupported, netID},
		{"binding failed", func(_ *AllocateRequest, f *fakeNeutron) {
			f.text("PUT /ports/", 200, `{"port": {"id": "port-1", "binding:vif_type": "binding_failed"}}`)
		}, ErrBindingFailed, "port-1"},
		{"other segment", func(_ *AllocateRequest, f *fakeNeutron) {
			f.text("PUT /ports/", 409, `{"NeutronError": {"type": "HostNotCompatibleWithFixedIps", "message": "x"}}`)
		}, ErrFixedIPInvalidOnHost, "port-1"},
		{"the agent's own credentials", answer("PUT /ports/", 401, "unauthorized-401"), ErrAdminCredentials, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, f := newFake(t)
			r := request()
			tt.change(&r, f)
			_, err := c.AllocateForInstance(tenant(t), r)
			require.ErrorIs(t, err, tt.want)
			if tt.id != "" {
				e, ok := errors.AsType[*Error](err)
				require.True(t, ok)
				require.Equal(t, tt.id, e.ID)
			}
			calls := f.asked(false)
			if f.created > 0 {
				require.Equal(t, "user DELETE /ports/port-1", calls[len(calls)-1], "what was created is deleted")
			}
		})
	}
}

// TestUndo fails the second of two ports: the created one goes, the user's own is released.
func TestUndo(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	r := request()
	r.Networks = []RequestedNetwork{{NetworkID: netID}, {PortID: "own"}, {PortID: "stolen"}}
	ports := func(own, stolen string) string {
		return `{"ports": [{"id": "own", "device_id": "` + own + `", "tenant_id": "` + projectID + `", "network_id": "` + netID + `", "binding:profile": {"keep": 1, "pci_slot": "x"}},` +
			`{"id": "stolen", "device_id": "` + stolen + `", "tenant_id": "` + projectID + `", "network_id": "` + netID + `"}]}`
	}
	f.text("GET /ports?id=own", 200, ports("", ""))
	boom := errors.New("no bridge")
	r.OnBound = func(_ context.Context, p AllocatedPort) error {
		if p.ID != "own" {
			return nil
		}
		// Meanwhile another server took the third port.
		f.text("GET /ports?id=own", 200, ports("instance", "other"))
		f.text("GET /ports?id=stolen", 200, ports("instance", "other"))
		return boom
	}
	_, err := c.AllocateForInstance(tenant(t), r)
	require.ErrorIs(t, err, boom)
	calls := f.asked(true)
	require.Contains(t, calls, "user DELETE /ports/port-1")
	bodies := f.sent()
	require.Contains(t, bodies, `{"binding:host_id":null,"binding:profile":{"keep":1},"device_id":"","device_owner":""}`)
	unbound := 0
	for _, b := range bodies {
		if b == `{"binding:host_id":null,"binding:profile":{},"device_id":"","device_owner":""}` {
			unbound++
		}
	}
	require.Zero(t, unbound, "the other server keeps its port")
}

func TestUndoGoesOnWithoutTheCaller(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	ctx, cancel := context.WithCancel(tenant(t))
	r := request()
	r.OnBound = func(ctx context.Context, _ AllocatedPort) error {
		cancel()
		return ctx.Err()
	}
	_, err := c.AllocateForInstance(ctx, r)
	require.ErrorIs(t, err, context.Canceled)
	require.Contains(t, f.asked(false), "user DELETE /ports/port-1")
}

func TestErrorsKeepTheService(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.file("POST /ports", 409, "create-409-quota")
	_, err := c.AllocateForInstance(tenant(t), request())
	require.Equal(t, http.StatusConflict, openstack.Status(err))
	require.ErrorContains(t, err, "port quota is exceeded: neutron: POST /ports: 409 Conflict: OverQuota: Quota exceeded for resources: ['port'].")
}
