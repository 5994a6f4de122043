//go:build functional

package conductor

import (
	"context"
	"net"
	"os"
	"slices"
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
		url = "rabbit://guest:guest@127.0.0.1:5672/"
	}
	o, err := rabbit.ParseURL(url)
	require.NoError(t, err)
	missing := func(why error) {
		if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
			t.Fatalf("need a Nova control plane behind %s: %v", o.Hosts[0].Address(), why)
		}
		t.Skipf("need a Nova control plane behind %s: %v", o.Hosts[0].Address(), why)
	}
	conn, err := net.DialTimeout("tcp", o.Hosts[0].Address(), 10*time.Second)
	if err != nil {
		missing(err)
	}
	require.NoError(t, conn.Close())
	transport, err := rabbit.Dial(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(transport.Close)
	client := rpc.NewClient(transport, rpc.ClientOptions{Timeout: time.Minute})
	t.Cleanup(client.Close)
	c := New(client, release.Oldest())
	ping := pingTarget
	ping.Timeout = 30 * time.Second
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
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
	fields := slices.Concat([]string{"mapped"}, createFields, nodeFields)
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
		"actions": func() (int, error) { l, err := c.Actions(ctx, id, 10); return len(l), err },
		"events":  func() (int, error) { l, err := c.Events(ctx, 1<<30); return len(l), err },
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

// instanceRow makes the row of an instance that no API knows.
func instanceRow(t *testing.T, c *Client) *object.Instance {
	t.Helper()
	v := c.Release().ObjectVersion
	flavor := &object.Flavor{
		Header: object.New("Flavor", v("Flavor")), ID: 1, Name: "test", MemoryMB: 64, VCPUs: 1, FlavorID: "1", RxTxFactor: new(float64), VCPUWeight: new(int),
		IsPublic: true,
	}
	require.NoError(t, object.Mark(flavor, "id", "name", "memory_mb", "vcpus", "root_gb", "ephemeral_gb", "flavorid", "swap",
		"rxtx_factor", "vcpu_weight", "disabled", "is_public", "extra_specs"))
	inst := &object.Instance{
		UUID: uuid.NewString(), UserID: "u", ProjectID: "p", VMState: object.VMStateBuilding, TaskState: object.TaskStateScheduling,
		DisplayName: "test", Hostname: "test", MemoryMB: 64, VCPUs: 1, ImageRef: uuid.NewString(), Flavor: flavor,
		Metadata: map[string]string{"role": "test"}, SystemMetadata: map[string]*string{"image_min_ram": new(string)},
	}
	require.NoError(t, c.create(t.Context(), inst, "Instance", []string{
		"uuid", "user_id", "project_id", "vm_state", "task_state", "display_name", "hostname", "memory_mb", "vcpus", "image_ref",
		"flavor", "metadata", "system_metadata",
	}))
	require.NotZero(t, inst.ID)
	t.Cleanup(func() {
		if !inst.Deleted { // the test failed
			destroy(t, c, inst, "Instance")
		}
	})
	return inst
}

// The life of an instance in the database: states under conditions, action, fault,
// disks, ports, console, and the end.
func TestLabInstance(t *testing.T) {
	c := labClient(t)
	ctx := t.Context()
	inst := instanceRow(t, c)
	host := "test-" + inst.UUID

	require.NoError(t, c.StartAction(ctx, inst.UUID, "create"))
	require.NoError(t, c.StartEvent(ctx, inst.UUID, "compute__do_build_and_run_instance", host))
	actions, err := c.Actions(ctx, inst.UUID, 5)
	require.NoError(t, err)
	require.Len(t, actions, 1)
	require.Equal(t, "create", actions[0].Action)
	require.NotEmpty(t, actions[0].RequestID)
	requireEvent := func(result string) {
		t.Helper()
		events, err := c.Events(ctx, actions[0].ID)
		require.NoError(t, err)
		require.Len(t, events, 1)
		require.Equal(t, "compute__do_build_and_run_instance", events[0].Event)
		require.Equal(t, host, events[0].Host)
		require.Equal(t, result, events[0].Result)
		require.False(t, events[0].StartTime.IsZero())
		require.Equal(t, result == "", events[0].FinishTime.IsZero())
	}
	requireEvent("")

	err = c.SaveInstance(ctx, inst, map[string]any{"task_state": "networking"}, ExpectTask("spawning"))
	require.True(t, exception.Is(err, "UnexpectedTaskStateError"), "%v", err)
	require.Equal(t, object.TaskStateScheduling, inst.TaskState)
	role := "member"
	require.NoError(t, c.SaveInstance(ctx, inst, map[string]any{
		"host": host, "node": host, "launched_on": host, "compute_id": 1, "task_state": nil,
		"system_metadata": map[string]*string{"image_min_ram": nil, "boot_roles": &role},
	}, ExpectTask("scheduling", "")))
	require.NoError(t, c.SaveInstance(ctx, inst, map[string]any{"task_state": "spawning"}, ExpectTask("")))
	launched := object.Now()
	require.NoError(t, c.SaveInstance(ctx, inst, map[string]any{
		"vm_state": object.VMStateActive, "task_state": nil, "power_state": 1, "launched_at": launched,
	}, ExpectTask("spawning"), ExpectVM("building")))
	require.Equal(t, object.VMStateActive, inst.VMState)

	found, err := c.InstanceByUUID(ctx, inst.UUID, "flavor", "system_metadata", "metadata")
	require.NoError(t, err)
	require.True(t, launched.Equal(found.LaunchedAt.Time), "%v, want %v", found.LaunchedAt, launched)
	require.Equal(t, "member", found.System("boot_roles"))
	require.Equal(t, map[string]string{"role": "test"}, found.Metadata)
	require.Equal(t, "test", found.Flavor.Name)
	require.Equal(t, 1, found.PowerState)
	require.False(t, found.IsSet("info_cache"))

	onHost, err := c.InstancesByHost(ctx, host, "flavor")
	require.NoError(t, err)
	require.Len(t, onHost, 1)
	onNode, err := c.InstancesByHostAndNode(ctx, host, host, "system_metadata", "numa_topology", "flavor", "migration_context", "resources")
	require.NoError(t, err)
	require.Len(t, onNode, 1)
	filtered, err := c.InstancesByFilters(ctx, map[string]any{"vm_state": "active", "host": host})
	require.NoError(t, err)
	require.Len(t, filtered, 1)
	require.NoError(t, c.RefreshInstance(ctx, inst))

	testInfoCache(t, c, inst)
	testDisks(t, c, inst.UUID)
	testPorts(t, c, inst.UUID)
	testConsole(t, c, inst.UUID)

	require.NoError(t, c.LoadInstance(ctx, found, "info_cache", "numa_topology", "pci_requests", "pci_devices", "migration_context",
		"tags", "fault", "resources", "device_metadata", "vcpu_model", "trusted_certs", "keypairs"))
	require.True(t, found.IsNull("numa_topology"))
	require.True(t, found.IsNull("migration_context"))

	fault := &object.InstanceFault{InstanceUUID: inst.UUID, Code: 500, Message: "no init", Host: host}
	require.NoError(t, c.CreateFault(ctx, fault))
	require.NotZero(t, fault.ID)
	text, trace := "no init", "chain"
	require.NoError(t, c.FinishEvent(ctx, inst.UUID, "compute__do_build_and_run_instance", &text, &trace))
	requireEvent("Error")
	require.NoError(t, c.UpdateInstanceInfo(ctx, host, []*object.Instance{found}))

	require.NoError(t, c.SaveInstance(ctx, inst, map[string]any{"vm_state": "deleted", "task_state": "deleting", "terminated_at": object.Now()}))
	err = c.SaveInstance(ctx, inst, map[string]any{"power_state": 4}, ExpectTask(""))
	require.True(t, exception.Is(err, "UnexpectedDeletingTaskStateError"), "%v", err)
	require.NoError(t, c.DestroyInstance(ctx, inst))
	require.True(t, inst.Deleted)
	_, err = c.InstanceByUUID(ctx, inst.UUID)
	require.True(t, exception.Is(err, "InstanceNotFound"), "%v", err)
	gone := &object.Instance{UUID: inst.UUID}
	require.NoError(t, c.LoadInstance(ctx, gone, "flavor"), "a deleted instance can be loaded")
	require.Equal(t, "test", gone.Flavor.Name)
	require.NoError(t, c.DeleteInstanceInfo(ctx, host, inst.UUID))
}

func testInfoCache(t *testing.T, c *Client, inst *object.Instance) {
	t.Helper()
	port := uuid.NewString()
	ni := object.NetworkInfo{{ID: port, Address: "fa:16:3e:00:00:01", Type: "bridge", Network: object.Network{Label: "é<net>"}}}
	require.NoError(t, c.SaveInfoCache(t.Context(), inst.UUID, ni))
	require.NoError(t, c.RefreshInfoCache(t.Context(), inst))
	got, err := inst.NetworkInfo().Text()
	require.NoError(t, err)
	want, err := ni.Text()
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NoError(t, c.SaveInfoCache(t.Context(), inst.UUID, nil))
	require.NoError(t, c.RefreshInfoCache(t.Context(), inst))
	require.Empty(t, inst.NetworkInfo())
}

func testDisks(t *testing.T, c *Client, instanceUUID string) {
	t.Helper()
	ctx := t.Context()
	volume := uuid.NewString()
	bdm := &object.BlockDeviceMapping{
		SourceType: "volume", DestinationType: "volume", InstanceUUID: instanceUUID, VolumeID: volume, DeviceName: "/dev/sdb", DeviceType: "disk",
	}
	require.NoError(t, c.CreateBDM(ctx, bdm))
	require.NotZero(t, bdm.ID)
	require.NoError(t, c.SaveBDM(ctx, bdm, map[string]any{"device_name": "/dev/sdc", "connection_info": `{"driver_volume_type": "fake"}`}))
	found, err := c.BDMByVolume(ctx, volume, instanceUUID)
	require.NoError(t, err)
	require.Equal(t, "/dev/sdc", found.DeviceName)
	require.Nil(t, found.BootIndex)
	all, err := c.BDMs(ctx, instanceUUID)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.NoError(t, c.DestroyBDM(ctx, found))
	_, err = c.BDMByVolume(ctx, volume, instanceUUID)
	require.True(t, exception.Is(err, "VolumeBDMNotFound"), "%v", err)
}

func testPorts(t *testing.T, c *Client, instanceUUID string) {
	t.Helper()
	ctx := t.Context()
	tag := "nic1"
	first, second := uuid.NewString(), uuid.NewString()
	require.NoError(t, c.CreateVIF(ctx, first, "fa:16:3e:00:00:01", instanceUUID, nil))
	require.NoError(t, c.CreateVIF(ctx, second, "fa:16:3e:00:00:01", instanceUUID, &tag))
	vifs, err := c.VIFs(ctx, instanceUUID)
	require.NoError(t, err)
	require.Len(t, vifs, 2)
	require.Equal(t, first, vifs[0].UUID)
	require.Equal(t, "nic1", vifs[1].Tag)
	require.NoError(t, c.DeleteVIF(ctx, first))
	require.NoError(t, c.DeleteVIFs(ctx, instanceUUID))
	vifs, err = c.VIFs(ctx, instanceUUID)
	require.NoError(t, err)
	require.Empty(t, vifs)
}

func testConsole(t *testing.T, c *Client, instanceUUID string) {
	t.Helper()
	ctx := t.Context()
	tok := &object.ConsoleAuthToken{
		ConsoleType: "serial", Host: "192.0.2.1", Port: 10000, InstanceUUID: instanceUUID, AccessURLBase: "ws://192.0.2.1:6083/",
	}
	token, err := c.AuthorizeConsoleToken(ctx, tok, 600*time.Second)
	require.NoError(t, err)
	require.NotEmpty(t, token)
	require.NotZero(t, tok.ID)
	require.NoError(t, c.CleanConsoleTokens(ctx, instanceUUID))
}

func TestLabTaskLog(t *testing.T) {
	c := labClient(t)
	ctx := t.Context()
	host := "test-" + uuid.NewString()
	end := time.Now().UTC().Truncate(time.Hour)
	begin := end.Add(-time.Hour)
	task := func() *object.TaskLog {
		return &object.TaskLog{TaskName: "test", Host: host, PeriodBeginning: object.At(begin), PeriodEnding: object.At(end), TaskItems: 3, Message: "begun"}
	}
	require.NoError(t, c.BeginTask(ctx, task()))
	err := c.BeginTask(ctx, task())
	require.True(t, exception.Is(err, "TaskAlreadyRunning"), "%v", err)
	done := task()
	done.Message = "done"
	require.NoError(t, c.EndTask(ctx, done))
	found, err := c.TaskLog(ctx, "test", begin, end, host)
	require.NoError(t, err)
	require.Equal(t, "DONE", found.State)
	require.Equal(t, "done", found.Message)
	require.Equal(t, 3, found.TaskItems)
}

// BenchmarkLabServiceByHost measures a call through the broker, the conductor and the database.
func BenchmarkLabServiceByHost(b *testing.B) {
	o, err := rabbit.ParseURL("rabbit://guest:guest@127.0.0.1:5672/")
	require.NoError(b, err)
	transport, err := rabbit.Dial(b.Context(), o)
	require.NoError(b, err)
	b.Cleanup(transport.Close)
	client := rpc.NewClient(transport, rpc.ClientOptions{})
	b.Cleanup(client.Close)
	c := New(client, release.Oldest())
	for b.Loop() {
		if _, err := c.ServiceByHost(b.Context(), "none", "nova-compute"); err != nil {
			b.Fatal(err)
		}
	}
}
