//go:build functional

package neutron

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

// newFunctional returns a client of the control plane and the id of the network "demo-net".
func newFunctional(tb testing.TB, cloud *ostest.Cloud) (*Client, string) {
	tb.Helper()
	c := New(Options{Service: cloud.Service("neutron", "network", "v2.0")})
	networks, err := list[Network](tb.Context(), c, asAdmin, "networks", "", nil, url.Values{"name": {"demo-net"}})
	require.NoError(tb, err)
	require.Len(tb, networks, 1, "the control plane needs a network demo-net")
	return c, networks[0].ID
}

func hostName(tb testing.TB) string {
	tb.Helper()
	host, err := os.Hostname()
	require.NoError(tb, err)
	return host
}

// TestAllocateForInstance gives a server two ports on a shared network, the way
// of a tenant and the way of an administrator.
func TestAllocateForInstance(t *testing.T) {
	cloud := ostest.Need(t)
	c, networkID := newFunctional(t, cloud)
	for _, tt := range []struct {
		name, user, project string
		roles               []string
	}{
		{"tenant creates, agent binds", "demo", "demo", []string{"member"}},
		{"administrator creates bound", "admin", "admin", []string{"admin"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, projectID := cloud.Context(t, tt.user, tt.project, tt.roles...)
			for range 3 {
				allocateOnce(ctx, t, c, networkID, projectID)
			}
		})
	}
}

func allocateOnce(ctx context.Context, t *testing.T, c *Client, networkID, projectID string) {
	t.Helper()
	instance := uuid.NewString()
	t.Cleanup(func() { _ = c.Deallocate(context.WithoutCancel(ctx), instance, nil) })

	var mu sync.Mutex
	var bound []time.Duration
	started := time.Now()
	step := func() time.Duration {
		d := time.Since(started)
		started = time.Now()
		return d.Round(time.Millisecond)
	}
	a, err := c.AllocateForInstance(ctx, AllocateRequest{
		InstanceUUID: instance, ProjectID: projectID, AvailabilityZone: "nova", Host: hostName(t), Hostname: "functional",
		SecurityGroups: []string{"default"},
		Networks:       []RequestedNetwork{{NetworkID: networkID, Tag: "one"}, {NetworkID: networkID}},
		OnBound: func(_ context.Context, p AllocatedPort) error {
			mu.Lock()
			defer mu.Unlock()
			bound = append(bound, time.Since(started).Round(time.Millisecond))
			require.NotEmpty(t, p.MACAddress)
			return nil
		},
	})
	require.NoError(t, err)
	t.Logf("allocate two ports: %v, bound after %v", step(), bound)
	require.Len(t, bound, 2)
	require.Len(t, a.Ports, 2)
	require.Equal(t, "one", a.Ports[0].Tag)
	for _, p := range a.Ports {
		require.Equal(t, hostName(t), p.HostID)
		require.Equal(t, "compute:nova", p.DeviceOwner)
		require.Equal(t, projectID, p.ProjectID)
		require.NotContains(t, []string{"", vifTypeUnbound, vifTypeBindingFailed}, p.VIFType)
		require.True(t, p.Created)
	}

	fresh, err := c.NetworkInfo(ctx, InfoRequest{Allocation: a})
	require.NoError(t, err)
	t.Logf("network info of an allocation: %v", step())
	var ids []string
	for i := range fresh {
		ids = append(ids, fresh[i].ID)
	}
	read, err := c.NetworkInfo(ctx, InfoRequest{InstanceUUID: instance, ProjectID: projectID, PortIDs: ids})
	require.NoError(t, err)
	t.Logf("network info read anew: %v", step())
	for i := range read {
		fresh[i].Active = read[i].Active // the agent may have reported the port meanwhile
		// Neutron gives this with a port's update and not with every list.
		delete(fresh[i].Details, "bound_drivers")
		delete(read[i].Details, "bound_drivers")
	}
	require.Equal(t, read, fresh)
	require.Equal(t, "10.77.0.0/24", fresh[0].Network.Subnets[0].CIDR)
	require.NotEmpty(t, fresh[0].Network.Bridge)
	require.Len(t, fresh[0].Network.Subnets[0].IPs, 1)

	require.NoError(t, c.Deallocate(ctx, instance, nil))
	t.Logf("deallocate: %v", step())
	left, err := c.Ports(ctx, instance, "")
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, c.Deallocate(ctx, instance, nil), "again")
}

// TestOwnPort binds a port that the user made, with the refusals that concern
// it, and gives it back.
func TestOwnPort(t *testing.T) {
	cloud := ostest.Need(t)
	c, networkID := newFunctional(t, cloud)
	ctx, projectID := cloud.Context(t, "demo", "demo", "member")
	var own portBody
	require.NoError(t, c.do(ctx, asUser, http.MethodPost, "/ports", nil, map[string]any{"port": map[string]any{"network_id": networkID}}, &own))
	t.Cleanup(func() { _ = c.DeletePort(context.WithoutCancel(ctx), own.Port.ID) })
	r := AllocateRequest{
		InstanceUUID: uuid.NewString(), ProjectID: projectID, Host: hostName(t), Hostname: "functional",
		Networks: []RequestedNetwork{{PortID: own.Port.ID}},
	}
	a, err := c.AllocateForInstance(ctx, r)
	require.NoError(t, err)
	require.Equal(t, []string{own.Port.ID}, a.Preexisting())
	require.Equal(t, "compute:None", a.Ports[0].DeviceOwner)
	info, err := c.NetworkInfo(ctx, InfoRequest{Allocation: a})
	require.NoError(t, err)
	require.True(t, info[0].PreserveOnDelete)

	other := r
	other.InstanceUUID = uuid.NewString()
	_, err = c.AllocateForInstance(ctx, other)
	require.ErrorIs(t, err, ErrPortInUse)
	require.NoError(t, c.Deallocate(ctx, other.InstanceUUID, []string{own.Port.ID}), "what the failed build of the other does")
	p, err := c.Port(ctx, own.Port.ID)
	require.NoError(t, err)
	require.Equal(t, r.InstanceUUID, p.DeviceID, "the port stays with its server")

	other.ProjectID = uuid.NewString()
	_, err = c.AllocateForInstance(ctx, other)
	require.ErrorIs(t, err, ErrPortNotUsable)
	other.ProjectID, other.Networks = projectID, []RequestedNetwork{{NetworkID: networkID, FixedIP: "192.0.2.1"}}
	_, err = c.AllocateForInstance(ctx, other)
	require.Error(t, err) // policy forbids tenants addresses on a network of others
	left, err := c.Ports(ctx, other.InstanceUUID, "")
	require.NoError(t, err)
	require.Empty(t, left)

	require.NoError(t, c.BindToHost(ctx, BindRequest{InstanceUUID: r.InstanceUUID, ProjectID: projectID, Host: hostName(t)}))
	require.NoError(t, c.Deallocate(ctx, r.InstanceUUID, []string{own.Port.ID}))
	p, err = c.Port(ctx, own.Port.ID)
	require.NoError(t, err)
	require.Empty(t, p.DeviceID)
	require.Empty(t, p.HostID)
	require.Equal(t, vifTypeUnbound, p.VIFType)
}

// TestAllocateTimes reports how long one port takes in the two ways.
func TestAllocateTimes(t *testing.T) {
	cloud := ostest.Need(t)
	c, networkID := newFunctional(t, cloud)
	const rounds = 7
	for _, tt := range []struct {
		name, user string
		roles      []string
	}{
		{"tenant", "demo", []string{"member"}},
		{"administrator, two calls", "admin", []string{"member"}},
		{"administrator, one call", "admin", []string{"admin"}},
	} {
		ctx, projectID := cloud.Context(t, tt.user, tt.user, tt.roles...)
		var check, bound, total, info []time.Duration
		for range rounds {
			r := AllocateRequest{
				InstanceUUID: uuid.NewString(), ProjectID: projectID, Host: hostName(t), Hostname: "functional",
				Networks: []RequestedNetwork{{NetworkID: networkID}},
			}
			t.Cleanup(func() { _ = c.Deallocate(context.WithoutCancel(ctx), r.InstanceUUID, nil) })
			started := time.Now()
			_, err := c.check(ctx, &r)
			require.NoError(t, err)
			check = append(check, time.Since(started))

			started = time.Now()
			r.OnBound = func(context.Context, AllocatedPort) error {
				bound = append(bound, time.Since(started))
				return nil
			}
			a, err := c.AllocateForInstance(ctx, r)
			require.NoError(t, err)
			total = append(total, time.Since(started))
			_, err = c.NetworkInfo(ctx, InfoRequest{Allocation: a})
			require.NoError(t, err)
			info = append(info, time.Since(started))
			require.NoError(t, c.Deallocate(ctx, r.InstanceUUID, nil))
		}
		t.Logf("%-25s of which check %v, bound %v, all read %v, info %v",
			tt.name, median(check), median(bound), median(total), median(info))
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2].Round(time.Millisecond)
}
