//go:build functional

package conductor

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/rpc/rabbit"
)

// labClient is a client of a real conductor behind AMQP_TEST_URL or the usual local
// broker. Without one the test fails if functional tests are demanded, and is skipped otherwise.
func labClient(t *testing.T) *Client {
	t.Helper()
	url := os.Getenv("AMQP_TEST_URL")
	if url == "" {
		url = "rabbit://openstack:labpass@127.0.0.1:5672/"
	}
	o, err := rabbit.ParseURL(url)
	require.NoError(t, err)
	missing := func(why error) {
		if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
			t.Fatalf("need a Nova control plane behind %s: %v", o.Hosts[0].Address(), why)
		}
		t.Skipf("need a Nova control plane behind %s: %v", o.Hosts[0].Address(), why)
	}
	conn, err := net.DialTimeout("tcp", o.Hosts[0].Address(), 2*time.Second)
	if err != nil {
		missing(err)
	}
	require.NoError(t, conn.Close())
	transport, err := rabbit.Dial(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(transport.Close)
	client := rpc.NewClient(transport, rpc.ClientOptions{Timeout: 20 * time.Second})
	t.Cleanup(client.Close)
	c := New(client, release.Oldest())
	ping := pingTarget
	ping.Timeout = 5 * time.Second
	if _, err := client.Call(t.Context(), ping, "ping", map[string]any{"arg": "x"}); err != nil {
		missing(err)
	}
	rel, err := c.DetectRelease(t.Context())
	require.NoError(t, err)
	t.Logf("the control plane is %s", rel)
	return c.WithRelease(rel)
}

func TestLabReadyAndRelease(t *testing.T) {
	c := labClient(t)
	require.NoError(t, c.WaitReady(t.Context()))
	for _, binary := range []string{"nova-conductor", "nova-scheduler"} {
		v, err := c.MinimumServiceVersion(t.Context(), binary)
		require.NoError(t, err)
		t.Logf("%s %d", binary, v)
	}
	v, err := c.MinimumServiceVersion(t.Context(), "nova-conductor")
	require.NoError(t, err)
	require.Equal(t, c.Release().ServiceVersion, v)
}

// A service record: created, reported, given another version and removed again.
func TestLabService(t *testing.T) {
	c := labClient(t)
	host := "test-" + uuid.NewString()
	none, err := c.ServiceByHost(t.Context(), host, "nova-compute")
	require.NoError(t, err)
	require.Nil(t, none)

	s := &object.Service{Host: host, Binary: "nova-compute", Topic: "compute", ServiceVersion: c.Release().ServiceVersion}
	require.NoError(t, c.CreateService(t.Context(), s))
	t.Cleanup(func() { destroy(t, c, s, "Service") })
	require.NotZero(t, s.ID)
	require.NotEmpty(t, s.UUID)

	s.ReportCount++
	require.NoError(t, c.ReportService(t.Context(), s))
	require.False(t, s.LastSeenUp.IsZero())

	other := &object.Service{Host: host, Binary: "nova-compute", Topic: "compute", ServiceVersion: c.Release().ServiceVersion}
	err = c.CreateService(t.Context(), other)
	require.True(t, exception.Is(err, "ServiceTopicExists") || exception.Is(err, "ServiceBinaryExists"), "%v", err)

	require.NoError(t, c.SetServiceVersion(t.Context(), s, c.Release().ServiceVersion))
	found, err := c.ServiceByHost(t.Context(), host, "nova-compute")
	require.NoError(t, err)
	require.Equal(t, 1, found.ReportCount)
	require.Equal(t, c.Release().ServiceVersion, found.ServiceVersion)

	s.ReportCount++
	old := *s
	require.NoError(t, c.SetServiceVersion(t.Context(), &old, c.Release().ServiceVersion))
	require.NoError(t, c.ReportService(t.Context(), s))
}

// destroy removes a row that the test made, although the test's context is over.
func destroy(t *testing.T, c *Client, o object.Object, class string) {
	t.Helper()
	g := &object.Generic{Header: o.Head().Clone()} // all fields: the conductor tells of it
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	_, _, err := c.action(reqctx.With(ctx, reqctx.Admin()), g, class, "destroy", nil, nil)
	require.NoError(t, err)
}

// A compute node: created, changed, found, removed, found as deleted.
func TestLabComputeNode(t *testing.T) {
	c := labClient(t)
	host := "test-" + uuid.NewString()
	nodes, err := c.ComputeNodesByHost(t.Context(), host)
	require.NoError(t, err)
	require.Empty(t, nodes)
	missing, err := c.ComputeNodeByUUID(t.Context(), uuid.NewString())
	require.NoError(t, err)
	require.Nil(t, missing)
	missing, err = c.ComputeNodeByHostAndNodename(t.Context(), host, host)
	require.NoError(t, err)
	require.Nil(t, missing)

	n := &object.ComputeNode{
		UUID: uuid.NewString(), Host: host, HypervisorHostname: host, HypervisorType: "lxc", HypervisorVersion: 5000002,
		VCPUs: 2, MemoryMB: 1024, LocalGB: 10, HostIP: "192.0.2.1", CPUAllocationRatio: 16, RAMAllocationRatio: 1.5, DiskAllocationRatio: 1,
		Metrics: "[]", Mapped: 1, // mapped: the scheduler's host discovery leaves it alone
		SupportedHVSpecs: []*object.HVSpec{{Header: object.New("HVSpec", c.Release().ObjectVersion("HVSpec")), Arch: "x86_64", HVType: "lxc", VMMode: "exe"}},
		PCIDevicePools:   &object.PciDevicePoolList{Header: object.New("PciDevicePoolList", c.Release().ObjectVersion("PciDevicePoolList"))},
	}
	require.NoError(t, object.Mark(n.PCIDevicePools))
	fields := append(append([]string{"mapped"}, createFields...), nodeFields...)
	require.NoError(t, c.create(t.Context(), n, "ComputeNode", fields))
	id := n.ID
	require.NotZero(t, id)

	running := "1"
	require.NoError(t, c.SaveComputeNode(t.Context(), n, map[string]any{
		"running_vms": 1, "stats": map[string]*string{"num_instances": &running}, "disk_available_least": nil,
	}))
	found, err := c.ComputeNodeByHostAndNodename(t.Context(), host, host)
	require.NoError(t, err)
	require.Equal(t, 1, found.RunningVMs)
	require.Equal(t, "1", *found.Stats["num_instances"])
	require.Len(t, found.SupportedHVSpecs, 1)
	require.Equal(t, "exe", found.SupportedHVSpecs[0].VMMode)
	nodes, err = c.ComputeNodesByHost(t.Context(), host)
	require.NoError(t, err)
	require.Len(t, nodes, 1)
	nodes, err = c.ComputeNodesByUUID(t.Context(), n.UUID)
	require.NoError(t, err)
	require.Len(t, nodes, 1)

	destroy(t, c, found, "ComputeNode")
	gone, err := c.ComputeNodeByUUID(t.Context(), n.UUID)
	require.NoError(t, err)
	require.NotNil(t, gone, "a deleted node is found by UUID")
	require.True(t, gone.Deleted)
}

// Reads that find nothing, and the failures that say so.
func TestLabNothingFound(t *testing.T) {
	c := labClient(t)
	ctx := t.Context()
	id := uuid.NewString()
	_, err := c.InstanceByUUID(ctx, id, "flavor")
	require.True(t, exception.Is(err, "InstanceNotFound"), "%v", err)
	require.True(t, exception.Is(err, "NotFound"), "%v", err)
	err = c.SaveInstance(ctx, &object.Instance{UUID: id, Header: object.New("Instance", "2.7")}, map[string]any{"task_state": nil}, ExpectTask("", "deleting"))
	require.True(t, exception.Is(err, "InstanceNotFound"), "%v", err)
	err = c.StartEvent(ctx, id, "compute_stop_instance", "none")
	require.True(t, exception.Is(err, "InstanceActionNotFound"), "%v", err)

	for name, read := range map[string]func() (int, error){
		"instances": func() (int, error) { l, err := c.InstancesByHost(ctx, id); return len(l), err },
		"filtered": func() (int, error) {
			l, err := c.InstancesByFilters(ctx, map[string]any{"vm_state": "building", "host": id}, "info_cache")
			return len(l), err
		},
		"by node":    func() (int, error) { l, err := c.InstancesByHostAndNode(ctx, id, id, "flavor"); return len(l), err },
		"bdms":       func() (int, error) { l, err := c.BDMs(ctx, id); return len(l), err },
		"vifs":       func() (int, error) { l, err := c.VIFs(ctx, id); return len(l), err },
		"migrations": func() (int, error) { l, err := c.MigrationsInProgressAndError(ctx, id, id); return len(l), err },
		"filtered migrations": func() (int, error) {
			l, err := c.MigrationsByFilters(ctx, map[string]any{"source_compute": id, "status": []string{"accepted"}, "migration_type": "evacuation"})
			return len(l), err
		},
		"resizes": func() (int, error) { l, err := c.UnconfirmedResizes(ctx, 10, id); return len(l), err },
		"pci":     func() (int, error) { l, err := c.PCIDevices(ctx, 1<<30); return len(l), err },
	} {
		n, err := read()
		require.NoError(t, err, name)
		require.Zero(t, n, name)
	}
	require.NoError(t, c.DeleteVIFs(ctx, id))
	require.NoError(t, c.DeleteVIF(ctx, id))
	require.NoError(t, c.CleanConsoleTokens(ctx, id))
	require.NoError(t, c.CleanExpiredConsoleTokens(ctx))
	log, err := c.TaskLog(ctx, "instance_usage_audit", time.Now().Add(-time.Hour), time.Now(), id)
	require.NoError(t, err)
	require.Nil(t, log)
	_, err = c.ServiceByComputeHost(ctx, id)
	require.True(t, exception.Is(err, "ComputeHostNotFound"), "%v", err)
	require.NoError(t, c.SyncInstanceInfo(ctx, id, nil))
	require.NoError(t, c.DeleteInstanceInfo(ctx, id, id))
}
