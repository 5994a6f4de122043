package compute

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
)

type rawJSON = json.RawMessage

// shelved is a world whose server is shelved and off the host.
func shelved(t testing.TB) *world {
	t.Helper()
	w := built(t).both()
	w.glance.images.add(newImage, "queued", nil)
	_, err := w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage, "clean_shutdown": true, "accel_uuids": []string{}})
	require.NoError(t, err)
	return w
}

func TestShelveAndUnshelve(t *testing.T) {
	t.Parallel()
	w := shelved(t)
	lanes := w.lanes()
	lanes["guest"] = lanes["guest"][2:] // the build's
	transcript(t, "shelve", lanes)
	w.toldAs("shelve", nil)
	require.Equal(t, "shelved_offloaded/-/-", w.nova.States(uuid))
	require.Equal(t, []string{"port-1=" + uuid + "@"}, w.neutron.state(), "the port is the server's, bound to no host")
	require.Empty(t, w.placement.Consumers())
	require.Empty(t, w.plugger.plugged())
	var system map[string]string
	require.NoError(t, json.Unmarshal([]byte(w.nova.Field(uuid, "system_metadata")), &system))
	require.Equal(t, newImage, system["shelved_image_id"])
	require.Equal(t, testHost, system["shelved_host"])
	_, err := parseShelvedAt(system["shelved_at"])
	require.NoError(t, err)
	w.done()

	w.unshelve(t)
	lanes = w.lanes()
	lanes["guest"] = lanes["guest"][len(lanes["guest"])-2:]
	transcript(t, "unshelve", lanes)
	w.toldAs("unshelve", nil)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, imageID, w.nova.Field(uuid, "image_ref"))
	require.NotContains(t, w.nova.Field(uuid, "system_metadata"), "shelved_")
	require.Equal(t, []string{"port-1=" + uuid + "@" + testHost}, w.neutron.state())
	require.Empty(t, w.glance.images.ids(), "the image has done its service")
	require.Equal(t, []string{uuid}, w.Tracker.Instances())
	guest, _ := w.driver.Instance(uuid)
	require.Len(t, guest.NICs, 1)
	w.done()
	_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	w.nothingLeft()
}

// unshelve does what conductor and scheduler do, and unshelves.
func (w *world) unshelve(t testing.TB) {
	t.Helper()
	w.nova.ClearLog()
	w.placement.ClearLog()
	w.trail.clear()
	w.sender.clear()
	w.placement.Allocate(uuid, w.Tracker.ProviderUUID(), placement.Resources{"VCPU": 1, "MEMORY_MB": 64})
	defer w.plugEventsOnSave()()
	_, err := w.operate("unshelve_instance", object.TaskStateUnshelving, map[string]any{
		"image": map[string]any{"id": newImage, "name": "shelved", "status": "active", "disk_format": "raw", "container_format": "bare", "min_ram": 0, "min_disk": 0, "properties": map[string]any{}},
		"node":  testHost, "accel_uuids": []string{},
	})
	require.NoError(t, err)
}

// TestUnshelveFails: the server stays shelved, with its image, and can be unshelved again.
func TestUnshelveFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setUp func(w *world)
	}{
		{"no disk", func(w *world) { w.trail.fail("root.create", errBoom) }},
		{"no port", func(w *world) { w.neutron.set("binding_failed", "DOWN") }},
		{"guest does not start", func(w *world) { w.driver.Fail("Start", "", errBoom) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := shelved(t)
			c.setUp(w)
			w.unshelve(t)
			require.Equal(t, "shelved_offloaded/-/-", w.nova.States(uuid))
			require.Equal(t, imageID, w.nova.Field(uuid, "image_ref"))
			require.Len(t, w.nova.Faults(), 1)
			require.Equal(t, []string{newImage}, w.glance.images.ids())
			require.Empty(t, w.placement.Consumers())
			local, err := w.localInstances(t.Context())
			require.NoError(t, err)
			require.Empty(t, local)
			w.done()
			w.neutron.set("bridge", "DOWN")
			w.unshelve(t)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
		})
	}
}

// TestShelveFails: the guest goes on, and no image without data stays.
func TestShelveFails(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(newImage, "queued", nil)
	w.trail.fail("glance PUT", errBoom, errBoom)
	_, err := w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage, "clean_shutdown": true})
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State)
	require.Empty(t, w.glance.images.ids())
	require.Len(t, w.nova.Faults(), 1)
	w.done()
}

func TestShelveWithoutOffload(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.ShelvedOffloadTime = time.Hour })
	w.glance.images.add(newImage, "queued", nil)
	_, err := w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage})
	require.NoError(t, err)
	require.Equal(t, "shelved/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, []string{"port-1"}, w.plugger.plugged())
	admin := adminContext(t.Context())
	require.NoError(t, w.offloadShelved(admin))
	require.Equal(t, "shelved/-/"+testHost, w.nova.States(uuid), "its time is not over")

	// An image that is gone keeps the server from being offloaded: its disk is all there is.
	w.glance.images.remove(newImage)
	_, err = w.operate("shelve_offload_instance", object.TaskStateShelvingOffloading, map[string]any{"clean_shutdown": false})
	require.NoError(t, err)
	require.Equal(t, "shelved/-/"+testHost, w.nova.States(uuid))
	require.Len(t, w.nova.Faults(), 1)

	w.glance.images.add(newImage, "active", nil)
	w.Manager.opts.ShelvedOffloadTime = time.Nanosecond
	for began := time.Now().Round(0); time.Since(began) < w.Manager.opts.ShelvedOffloadTime; { // a clock may stand still for a while
	}
	require.NoError(t, w.offloadShelved(admin))
	require.Equal(t, "shelved_offloaded/-/-", w.nova.States(uuid))
	require.Contains(t, w.nova.Log(), "InstanceAction.action_start shelveOffload")
}

// TestStartOfShelved: unshelving a server that is still on its host is a start, which ends the shelving.
func TestStartOfShelved(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.ShelvedOffloadTime = -1 })
	w.glance.images.add(newImage, "queued", nil)
	_, err := w.operate("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage})
	require.NoError(t, err)
	require.Contains(t, w.nova.Field(uuid, "system_metadata"), "shelved_at")
	_, err = w.operate("start_instance", object.TaskStatePoweringOn, nil)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.NotContains(t, w.nova.Field(uuid, "system_metadata"), "shelved_")
	require.Empty(t, w.glance.images.ids())
}

// TestInterruptedOperations: what the journal holds is finished by the next start, or given up after several.
func TestInterruptedOperations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, vm, task string
		args             map[string]any
		want             string
		givenUp          string
	}{
		{"rebuild_instance", "active", "rebuild_spawning", rebuildArgs(t, otherImage), "active/-/" + testHost, "error/-/" + testHost},
		{"rebuild_instance", "error", "rebuilding", rebuildArgs(t, otherImage), "active/-/" + testHost, "error/-/" + testHost},
		{"rescue_instance", "active", "rescuing", map[string]any{"rescue_image_ref": otherImage}, "rescued/-/" + testHost, "error/-/" + testHost},
		{"unrescue_instance", "rescued", "unrescuing", map[string]any{}, "active/-/" + testHost, "error/-/" + testHost},
		{"snapshot_instance", "active", "image_uploading", map[string]any{"image_id": newImage}, "active/-/" + testHost, "active/-/" + testHost},
		{"shelve_instance", "active", "shelving_image_uploading", map[string]any{"image_id": newImage}, "shelved_offloaded/-/-", "active/-/" + testHost},
	} {
		for _, resumed := range []int{0, maxResumes} {
			t.Run(c.method+" "+c.task, func(t *testing.T) {
				t.Parallel()
				w := built(t)
				w.glance.images.add(otherImage, "active", nil)
				w.glance.images.add(newImage, "queued", nil)
				w.driver.SetState(uuid, driver.PowerStatePaused) // frozen for the snapshot
				w.nova.Update(uuid, map[string]any{"vm_state": c.vm, "task_state": c.task})
				args := map[string]rawJSON{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")}
				for name, value := range c.args {
					args[name] = novatest.Raw(value)
				}
				w.interrupted(c.method, args, func(e *journal.Entry) { e.Resumed = resumed })
				w.startEvent(user(t), uuid, c.method)
				w.restarted()
				require.NoError(t, w.InitHost(t.Context()))
				w.drain()
				want, result := c.want, "req-1 Success"
				if resumed > 0 {
					want, result = c.givenUp, "req-1 Error"
					require.Len(t, w.nova.Faults(), 1)
				}
				require.Equal(t, []string{result}, w.results("compute_"+c.method))
				require.Equal(t, want, w.nova.States(uuid))
				require.Empty(t, w.entries())
			})
		}
	}
}

func TestClassOfOffloadRefusal(t *testing.T) {
	t.Parallel()
	w := built(t)
	inst := w.instance("system_metadata")
	id := newImage
	inst.SystemMetadata["shelved_image_id"] = &id
	require.True(t, exception.Is(w.checkShelved(user(t), inst), "ImageNotFound"))
}
