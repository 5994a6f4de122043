package compute

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// TestMoveNotifications compares what each host tells with the capture of the same operation.
func TestMoveNotifications(t *testing.T) {
	source, destination := twoHosts(t)
	source.both()
	destination.both()
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
	source.next("resize_instance")
	destination.next("finish_resize")
	source.toldBy("resize", testHost, nil)
	destination.toldBy("resize", otherHost, nil)

	args := rpc.Args{"instance": source.nova.Instance(uuid, "system_metadata"), "migration": novatest.Object("Migration", source.nova.Migration(migrationUUID))}
	source.step("confirm_resize", args)
	source.toldBy("resize-confirm", testHost, nil)
}

// TestRevertNotifications: the captured server had been moved the other way.
func TestRevertNotifications(t *testing.T) {
	source, destination := twoHosts(t)
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99})))
	source.next("resize_instance")
	destination.next("finish_resize")
	source.both().sender.clear()
	destination.both().sender.clear()
	destination.step("revert_resize", revertArgs(source))
	source.next("finish_revert_resize")
	destination.toldBy("resize-revert", testHost, nil)
	source.toldBy("resize-revert", otherHost, nil)
}

// evacuate does what API and conductor do for an evacuation to the other host.
func evacuate(source, destination *world) rpc.Args {
	source.t.Helper()
	fields := novatest.Fields{}
	for name, value := range map[string]any{
		"id": 9, "uuid": migrationUUID, "instance_uuid": uuid, "source_compute": source.opts.Host, "source_node": source.opts.Host,
		"status": "accepted", "migration_type": "evacuation", "dest_compute": nil, "dest_node": nil, "dest_host": nil,
	} {
		fields[name] = novatest.Raw(value)
	}
	source.nova.AddMigration(fields)
	source.nova.Update(uuid, map[string]any{"task_state": "rebuilding"})
	source.placement.Allocate(uuid, destination.Tracker.ProviderUUID(), placement.Resources{"VCPU": 1})
	args := rpc.Args{}
	for _, m := range capture.Operation(source.t, "zed", "evacuate") {
		if m.Method == "rebuild_instance" && m.Version == "6.1" {
			maps.Copy(args, m.Args)
		}
	}
	args["instance"] = source.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")
	args["migration"] = novatest.Object("Migration", fields)
	return args
}

func TestEvacuateInstance(t *testing.T) {
	source, destination := twoHosts(t)
	source.glance.images.add(imageID, "active", nil)
	destination.both()
	args := evacuate(source, destination)
	_, err := destination.call(user(t), "rebuild_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, `"done"`, source.status())
	destination.toldBy("evacuate", testHost, nil) // it went to that host there
	got, ok := destination.driver.Instance(uuid)
	require.True(t, ok)
	require.Equal(t, driver.PowerStateRunning, got.State)
	require.Contains(t, destination.neutron.state()[0], "@"+otherHost)
	require.Equal(t, []string{uuid}, destination.Tracker.Instances())
	require.Empty(t, destination.entries())

	// The source comes back: what it has of the server goes.
	source.restarted()
	require.NoError(t, source.InitHost(t.Context()))
	source.drain()
	require.Equal(t, `"completed"`, source.status())
	local, err := source.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, []string{uuid}, source.placement.Consumers(), "the destination's part stays")
}

func TestEvacuationFails(t *testing.T) {
	for _, c := range []struct {
		name, state string
		setUp       func(source, destination *world)
	}{
		{"instance is here", "active/-/" + testHost, func(_, d *world) { require.NoError(d.t, d.saveRecord(record{UUID: uuid})) }},
		{"no image", "active/-/" + testHost, func(s, _ *world) { s.glance.images.add(imageID, "queued", nil) }},
		{"no disk", "error/-/" + testHost, func(_, d *world) { d.trail.fail("root.create", storage.ErrNoSpace) }},
		{"no start", "error/-/" + testHost, func(_, d *world) { d.driver.Fail("Start", uuid, errBoom) }},
		{"it is deleted", "active/deleting/" + testHost, func(s, _ *world) {
			s.nova.On("Instance.save task_state=\"rebuild_spawning\"", func() { s.nova.Update(uuid, map[string]any{"task_state": "deleting"}) })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, destination := twoHosts(t)
			source.glance.images.add(imageID, "active", nil)
			args := evacuate(source, destination)
			c.setUp(source, destination)
			_, err := destination.call(user(t), "rebuild_instance", args)
			require.NoError(t, err, "nobody waits for an answer")
			require.Equal(t, c.state, source.nova.States(uuid))
			require.Equal(t, `"failed"`, source.status())
			require.Empty(t, source.placement.Consumers(), "the destination's part of the allocation is gone")
			_, ok := destination.driver.Instance(uuid)
			require.False(t, ok)
			require.Empty(t, destination.plugger.plugged())
			require.Empty(t, destination.Tracker.Instances())
			if c.state != "active/deleting/"+testHost {
				require.Len(t, source.nova.Faults(), 1)
			}
		})
	}
}

// TestEvacuationOfStoppedServer: its root disk is as new as that of one that runs.
func TestEvacuationOfStoppedServer(t *testing.T) {
	source, destination := twoHosts(t)
	source.glance.data = lxdImage(t)
	source.glance.images.add(imageID, "active", nil)
	args := evacuate(source, destination)
	args["instance"] = withFields(t, args["instance"], map[string]any{"vm_state": "stopped"})
	source.nova.Update(uuid, map[string]any{"vm_state": "stopped"})
	_, err := destination.call(user(t), "rebuild_instance", args)
	require.NoError(t, err)
	require.Equal(t, "stopped/-/"+otherHost, source.nova.States(uuid))
	got, ok := destination.driver.Instance(uuid)
	require.True(t, ok)
	require.Equal(t, driver.PowerStateShutdown, got.State)
	require.FileExists(t, filepath.Join(destination.roots.dir, uuid, "etc/hostname"), "of a template")
}

// TestEvacuationIsTakenUp: one that a stop of the agent cut off begins anew.
func TestEvacuationIsTakenUp(t *testing.T) {
	source, destination := twoHosts(t)
	source.glance.images.add(imageID, "active", nil)
	args := evacuate(source, destination)
	rec := record{UUID: uuid, Name: "instance-0000000d", Evacuation: migrationUUID}
	require.NoError(t, destination.saveRecord(rec))
	source.nova.Update(uuid, map[string]any{"task_state": object.TaskStateRebuildSpawning})
	destination.interrupted("rebuild_instance", args, nil)
	destination.restarted()
	require.NoError(t, destination.InitHost(t.Context()))
	destination.drain()
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	require.Equal(t, `"done"`, source.status())
}
