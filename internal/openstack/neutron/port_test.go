package neutron

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDeallocate(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.text("GET /ports?device_id=instance", 200, `{"ports": [{"id": "a"}, {"id": "b"}, {"id": "own"}]}`)
	f.text("GET /ports?id=own", 200, `{"ports": [{"id": "own", "device_id": "instance", "network_id": "n"}, {"id": "taken", "device_id": "other"}]}`)
	f.file("DELETE /ports/b", 404, "port-404")
	require.NoError(t, c.Deallocate(tenant(t), "instance", []string{"own", "taken", "gone"}))
	require.Equal(t, []string{
		"admin GET /extensions?fields=alias", "admin GET /ports?id=own&id=taken&id=gone", "admin PUT /ports/own",
		"user DELETE /ports/a", "user DELETE /ports/b", "user GET /ports?device_id=instance&fields=id",
	}, f.asked(true))
	require.Equal(t, []string{`{"binding:host_id":null,"binding:profile":{},"device_id":"","device_owner":""}`}, f.sent())

	f.text("DELETE /ports/a", 409, `{"NeutronError": {"type": "L3PortInUse", "message": "no"}}`)
	err := c.Deallocate(tenant(t), "instance", nil)
	require.ErrorContains(t, err, "delete port a: neutron: DELETE /ports/a: 409 Conflict: L3PortInUse: no")
	require.Contains(t, f.asked(false), "user DELETE /ports/b", "the others are deleted all the same")
}

// TestDeallocateWithExpiredToken: the delete of a server that took long to stop.
func TestDeallocateWithExpiredToken(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.text("GET /ports?device_id=instance", 200, `{"ports": [{"id": "a"}]}`)
	f.file("DELETE /ports/a", 401, "unauthorized-401")
	err := c.Deallocate(tenant(t), "instance", nil)
	require.ErrorIs(t, err, ErrAdminCredentials)
	calls := f.asked(false)
	require.Equal(t, "user DELETE /ports/a", calls[1])
	require.Equal(t, "admin DELETE /ports/a", calls[2])
}

func TestUnbind(t *testing.T) {
	t.Parallel()
	const owned = `{"ports": [{"id": "own", "device_id": "instance", "network_id": "n", "binding:profile": {"keep": 1, "allocation": "x", "vf_num": 3}}]}`
	for _, tt := range []struct {
		name, domain string
		detach       bool
		bodies       []string
	}{
		{"shelved", "", false, []string{`{"binding:host_id":null,"binding:profile":{"keep":1}}`}},
		{"detached", "", true, []string{`{"binding:host_id":null,"binding:profile":{"keep":1},"device_id":"","device_owner":"","dns_name":""}`}},
		{"name in the user's zone", "example.org.", true, []string{`{"binding:host_id":null,"binding:profile":{"keep":1},"device_id":"","device_owner":""}`, `{"dns_name":""}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, f := newFake(t)
			f.text("GET /extensions", 200, `{"extensions": [{"alias": "dns-integration"}]}`)
			f.text("GET /networks?fields=id&fields=dns_domain&id=n", 200, `{"networks": [{"id": "n", "dns_domain": "`+tt.domain+`"}]}`)
			f.text("GET /ports?id=own", 200, owned)
			require.NoError(t, c.Unbind(tenant(t), "instance", []string{"own", ""}, tt.detach))
			require.Equal(t, tt.bodies, f.sent())
			if tt.domain != "" {
				require.Contains(t, f.asked(false), "user PUT /ports/own")
			}
		})
	}
	c, f := newFake(t)
	require.NoError(t, c.Unbind(tenant(t), "instance", nil, true))
	require.Empty(t, f.asked(false))
	f.text("GET /ports?id=own", 200, owned)
	f.file("PUT /ports/own", 404, "port-404")
	require.NoError(t, c.Unbind(tenant(t), "instance", []string{"own"}, true), "gone meanwhile")
}

func TestPort(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.file("GET /ports/x", 404, "port-404")
	_, err := c.Port(t.Context(), "x")
	require.ErrorIs(t, err, ErrPortNotFound)
	f.file("GET /ports/x", 200, "port-bound")
	p, err := c.Port(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, "vm", p.HostID)
	require.False(t, p.Active())
}

func TestBindToHost(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.text("GET /ports?device_id", 200, `{"ports": [
		{"id": "here", "binding:host_id": "vm", "binding:vif_type": "bridge"},
		{"id": "failed", "binding:host_id": "vm", "binding:vif_type": "binding_failed"},
		{"id": "moved", "binding:host_id": "old", "binding:vif_type": "bridge", "binding:profile": {"migrating_to": "vm", "keep": 1}},
		{"id": "qos", "binding:host_id": "vm", "binding:vif_type": "ovs", "resource_request": {"required": ["X"]}}]}`)
	r := BindRequest{InstanceUUID: "i", ProjectID: "p", Host: "vm", ProviderMapping: map[string][]string{"qos": {"rp"}}}
	require.ErrorIs(t, c.BindToHost(t.Context(), BindRequest{InstanceUUID: "i", Host: "vm"}), ErrPortUpdateFailed, "before anything is changed")
	require.Empty(t, f.sent())
	f.text("GET /extensions", 200, `{"extensions": []}`)
	c2 := New(c.options)
	require.NoError(t, c2.BindToHost(t.Context(), r))
	bodies := f.sent()
	slices.Sort(bodies)
	require.Equal(t, []string{
		`{"binding:host_id":"vm","binding:profile":{"keep":1},"device_owner":"compute:None"}`,
		`{"binding:host_id":"vm","device_owner":"compute:None"}`,
		`{"binding:profile":{"allocation":"rp"}}`,
	}, bodies)
}

func TestBindings(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	f.text("GET /ports/a/bindings/new", 200, `{"binding": {"status": "INACTIVE"}}`)
	f.text("PUT /ports/a/bindings/new/activate", 200, "")
	f.text("GET /ports/b/bindings/new", 200, `{"binding": {"status": "ACTIVE"}}`)
	f.text("GET /ports/c/bindings/new", 500, "")
	f.file("GET /ports/d/bindings/new", 404, "port-404")
	require.NoError(t, c.ActivateBindings(t.Context(), []string{"a", "b", "c", "d", "e"}, "new"))
	require.Equal(t, []string{
		"admin GET /extensions?fields=alias", "admin GET /ports/a/bindings/new", "admin PUT /ports/a/bindings/new/activate",
		"admin GET /ports/b/bindings/new", "admin GET /ports/c/bindings/new", "admin GET /ports/d/bindings/new",
	}, f.asked(false))
	f.text("PUT /ports/a/bindings/new/activate", 500, "")
	require.ErrorIs(t, c.ActivateBindings(t.Context(), []string{"a"}, "new"), ErrBindingActivationFailed)
	f.text("PUT /ports/a/bindings/new/activate", 409, "")
	require.NoError(t, c.ActivateBindings(t.Context(), []string{"a"}, "new"))
}

func TestFixedIPs(t *testing.T) {
	t.Parallel()
	c, f := newFake(t)
	require.ErrorIs(t, c.AddFixedIP(tenant(t), "i", "nova", "n"), ErrNetworkNotAttached)
	require.ErrorIs(t, c.RemoveFixedIP(tenant(t), "i", "nova", "10.0.0.1"), ErrFixedIPNotFound)
	f.text("GET /subnets", 200, `{"subnets": [{"id": "full"}, {"id": "s"}]}`)
	f.text("GET /ports?device_id=i&device_owner=compute:nova", 200, `{"ports": [{"id": "a", "fixed_ips": [{"subnet_id": "s", "ip_address": "10.0.0.1"}]}]}`)
	require.NoError(t, c.AddFixedIP(tenant(t), "i", "nova", "n"))
	require.Equal(t, []string{`{"fixed_ips":[{"ip_address":"10.0.0.1","subnet_id":"s"},{"subnet_id":"full"}]}`}, f.sent())
	require.NoError(t, c.RemoveFixedIP(tenant(t), "i", "nova", "10.0.0.1"))
	require.Equal(t, []string{`{"fixed_ips":[]}`}, f.sent())
	f.text("PUT /ports/a", 409, `{"NeutronError": {"type": "IpAddressGenerationFailure", "message": "full"}}`)
	require.ErrorIs(t, c.AddFixedIP(tenant(t), "i", "nova", "n"), ErrNetworkNotAttached)
}
