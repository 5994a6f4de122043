package compute

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const otherImage = "aaaaaaaa-0000-4000-8000-000000000001"

// both makes a world tell notifications in both forms.
func (w *world) both() *world {
	w.Notify = notify.New(w.sender, notify.Options{Host: testHost, Format: notify.FormatBoth, Release: w.release})
	return w
}

// done requires that an operation left nothing of its own behind.
func (w *world) done() {
	w.t.Helper()
	require.Empty(w.t, w.entries())
	require.False(w.t, w.journal.Has(uuid))
	roots, err := w.roots.List(w.t.Context())
	require.NoError(w.t, err)
	for _, id := range roots {
		require.False(w.t, strings.HasSuffix(id, snapshotSuffix), "a copy is left")
	}
}

// rebuildArgs are the arguments of the captured rebuild, for another image.
func rebuildArgs(t testing.TB, imageRef string) map[string]any {
	t.Helper()
	args := map[string]any{}
	for _, m := range capture.Operation(t, "zed", "rebuild") {
		if m.Method == "rebuild_instance" && m.Version == "6.1" {
			for name, raw := range m.Args {
				args[name] = raw
			}
		}
	}
	require.NotEmpty(t, args)
	delete(args, "instance")
	args["image_ref"] = imageRef
	return args
}

func TestRebuildInstance(t *testing.T) {
	t.Parallel()
	w := built(t).both()
	w.glance.images.add(otherImage, "active", nil)
	w.nova.Update(uuid, map[string]any{"image_ref": otherImage})
	before, _ := w.driver.Instance(uuid)
	_, err := w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage))
	require.NoError(t, err)
	lanes := w.lanes()
	lanes["guest"] = lanes["guest"][2:] // the build's
	transcript(t, "rebuild", lanes)
	w.toldAs("rebuild", nil)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	after, _ := w.driver.Instance(uuid)
	require.NotEqual(t, before.InitPID, after.InitPID)
	require.Equal(t, otherImage, after.Spec.ImageID)
	require.Equal(t, before.Spec.IDs, after.Spec.IDs, "the ids are kept")
	require.Equal(t, before.NICs, after.NICs)
	for _, img := range w.images() {
		require.Equal(t, img.ID == otherImage, len(img.Instances) == 1, "the old image is not used any more")
	}
	w.done()
	_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	w.nothingLeft()
}

func TestRebuildStopped(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.SetState(uuid, driver.PowerStateShutdown)
	w.nova.Update(uuid, map[string]any{"vm_state": "stopped"})
	w.glance.images.add(imageID, "active", nil)
	_, err := w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, imageID))
	require.NoError(t, err)
	require.Equal(t, "stopped/-/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateShutdown, guest.State)
	saves := w.saves()
	require.Equal(t, []string{
		`Instance.save launched_at=now power_state=4 task_state=null vm_state="active" if task_state=["rebuild_spawning"]`,
		`Instance.save progress=0 task_state="powering-off"`,
		`Instance.save power_state=4 task_state=null vm_state="stopped" if task_state=["powering-off",null]`,
	}, saves[3:6])
	require.Len(t, w.nova.LogOf("InstanceActionEvent"), 4, "as nova, that of a stop besides")
}

// TestRebuildFailures: ERROR with the cause; another rebuild works; what was not touched is as it was.
func TestRebuildFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		setUp   func(w *world)
		kept    bool // the guest on its old root
		message string
	}{
		{"image is gone", func(w *world) { w.glance.images.remove(otherImage) }, true, "could not be found"},
		{"image has no data yet", func(w *world) { w.glance.images.add(otherImage, "queued", nil) }, true, "is not active"},
		{"image is of another format", func(w *world) { w.glance.images.add(otherImage, "active", map[string]any{"disk_format": "qcow2"}) }, true, "qcow2"},
		{"image wants more memory", func(w *world) { w.glance.images.add(otherImage, "active", map[string]any{"min_ram": 1 << 20}) }, true, "memory"},
		{"store is full", func(w *world) { w.glance.trail.fail("glance GET", errBoom) }, true, ""},
		{"guest does not stop", func(w *world) { w.driver.Fail("Stop", "", driver.ErrTimeout) }, true, ""},
		{"disk is full", func(w *world) { w.trail.fail("root.create", storage.ErrNoSpace) }, false, "no space"},
		{"guest does not start", func(w *world) { w.driver.Fail("Start", "", errBoom) }, false, "boom"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.glance.images.add(otherImage, "active", nil)
			c.setUp(w)
			w.nova.Update(uuid, map[string]any{"image_ref": otherImage})
			before, _ := w.driver.Instance(uuid)
			_, err := w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage))
			require.NoError(t, err, "nobody waits for an answer")
			require.Equal(t, "error/-/"+testHost, w.nova.States(uuid))
			require.Len(t, w.nova.Faults(), 1)
			require.Contains(t, w.nova.Faults()[0], c.message)
			require.Contains(t, w.sender.all(), "ERROR compute.instance.rebuild.error")
			after, there := w.driver.Instance(uuid)
			if c.kept {
				require.Equal(t, before.InitPID, after.InitPID, "the guest was not touched")
			} else {
				require.False(t, there && after.State == driver.PowerStateRunning)
			}
			w.done()
			w.glance.images.add(otherImage, "active", nil)
			_, err = w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage))
			require.NoError(t, err)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
		})
	}
}

// TestRebuildOfNothing: a server in ERROR that this host has nothing of gets everything.
func TestRebuildOfNothing(t *testing.T) {
	t.Parallel()
	w := built(t)
	require.NoError(t, w.removeFromHost(t.Context(), uuid))
	w.nova.Update(uuid, map[string]any{"vm_state": "error"})
	w.glance.images.add(imageID, "active", nil)
	_, err := w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, imageID))
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, []string{"port-1"}, w.plugger.plugged())
}

// TestDeleteOvertakesRebuild: a delete does not wait for the image.
func TestDeleteOvertakesRebuild(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(otherImage, "active", nil)
	release := w.trail.block("root.create")
	defer release()
	w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateRebuilding})
	args := map[string]json.RawMessage{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")}
	for name, value := range rebuildArgs(t, otherImage) {
		args[name] = novatest.Raw(value)
	}
	_, err := w.handler("rebuild_instance")(user(t), args)
	require.NoError(t, err)
	eventually(t, "root disk to be made", func() bool { return w.trail.has("root.create " + uuid) })
	_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
	require.Empty(t, w.nova.Faults())
	w.done()
	w.nothingLeft()
}
