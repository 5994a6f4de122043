package compute

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
)

func TestRescueAndUnrescue(t *testing.T) {
	t.Parallel()
	w := built(t).both()
	w.glance.images.add(imageID, "active", nil)
	w.glance.images.add(otherImage, "active", nil)
	etc := filepath.Join(w.roots.dir, uuid+".rescue", "etc")
	require.NoError(t, os.MkdirAll(etc, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "shadow"), []byte("root:*:19000:0:99999:7:::\n"), 0o600))
	own, _ := w.driver.Instance(uuid)
	_, err := w.operate("rescue_instance", object.TaskStateRescuing, map[string]any{
		"rescue_password": "let-me-in", "rescue_image_ref": otherImage, "clean_shutdown": true,
	})
	require.NoError(t, err)
	lanes := w.lanes()
	lanes["guest"] = lanes["guest"][2:] // the build's
	transcript(t, "rescue", lanes)
	w.toldAs("rescue", map[string]any{ // there without a choice of image, and by a driver that left the guest off
		"instance.rescue.start rescue_image_ref": true, "instance.rescue.end rescue_image_ref": true, "instance.rescue.end power_state": "running",
	})
	require.Equal(t, "rescued/-/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, otherImage, guest.Spec.ImageID)
	require.Equal(t, own.Spec.Name, guest.Spec.Name)
	require.Equal(t, own.NICs, guest.NICs)
	require.Equal(t, []driver.Bind{{Source: own.RootFS, Target: "mnt"}}, guest.Spec.Binds)
	require.NotEqual(t, own.RootFS, guest.RootFS)
	shadow, err := os.ReadFile(filepath.Join(etc, "shadow"))
	require.NoError(t, err)
	require.Regexp(t, `^root:\$[0-9a-z]+\$`, string(shadow), "the password is the rescue system's")
	w.done()

	// A start in rescue is one of the rescue system, whoever makes it.
	w.trail.clear()
	_, err = w.operate("reboot_instance", "rebooting_hard", map[string]any{"reboot_type": "HARD"})
	require.NoError(t, err)
	require.Equal(t, "rescued/-/"+testHost, w.nova.States(uuid))
	require.ElementsMatch(t, []string{"plug port-1", "root.mount " + uuid, "root.mount " + uuid + ".rescue"}, onlyHost(w))

	w.nova.ClearLog()
	w.trail.clear()
	w.sender.clear()
	calls := len(w.driver.Calls())
	_, err = w.operate("unrescue_instance", object.TaskStateUnrescuing, nil)
	require.NoError(t, err)
	lanes = w.lanes()
	lanes["guest"] = lanes["guest"][calls:]
	transcript(t, "unrescue", lanes)
	w.toldAs("unrescue", map[string]any{"instance.unrescue.start power_state": "running"})
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	guest, _ = w.driver.Instance(uuid)
	require.Equal(t, own.Spec, guest.Spec)
	require.Equal(t, own.RootFS, guest.RootFS)
	w.done()
	for _, img := range w.images() {
		require.Equal(t, img.ID == imageID, len(img.Instances) == 1)
	}
}

// TestRescueOfImage: without a choice it is what the server was made from.
func TestRescueOfImage(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(imageID, "active", nil)
	_, err := w.operate("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_password": nil, "rescue_image_ref": nil})
	require.NoError(t, err)
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, imageID, guest.Spec.ImageID)
	_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
	require.NoError(t, err)
	w.nothingLeft()
}

func TestRescueFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setUp func(w *world)
		vm    string
		kept  bool // the guest was not touched
	}{
		{"image is gone", func(w *world) { w.glance.images.remove(otherImage) }, "active", true},
		{"disk is full", func(w *world) { w.trail.fail("root.create "+uuid+".rescue", storage.ErrNoSpace) }, "active", true},
		{"guest does not stop", func(w *world) { w.driver.Fail("Stop", "", driver.ErrTimeout) }, "error", true},
		{"rescue system does not start", func(w *world) { w.driver.Fail("Start", "", errBoom) }, "error", false},
		{"host has nothing of it", func(w *world) { require.NoError(w.t, w.removeFromHost(w.t.Context(), uuid)) }, "active", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.glance.images.add(otherImage, "active", nil)
			before, there := w.driver.Instance(uuid)
			c.setUp(w)
			_, err := w.operate("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
			require.NoError(t, err)
			require.Equal(t, c.vm+"/-/"+testHost, w.nova.States(uuid))
			require.Len(t, w.nova.Faults(), 1)
			require.Contains(t, w.nova.Faults()[0], "cannot be rescued")
			after, still := w.driver.Instance(uuid)
			if c.kept {
				require.Equal(t, before.InitPID, after.InitPID)
			}
			if there && still {
				require.Equal(t, before.Spec, after.Spec)
			}
			w.done()
			rec, _, err := w.record(uuid)
			require.NoError(t, err)
			require.Nil(t, rec.Rescue)
			_, left := w.roots.roots[uuid+".rescue"]
			require.False(t, left)
			w.nova.Update(uuid, map[string]any{"vm_state": "error"})
			_, err = w.operate("terminate_instance", object.TaskStateDeleting, nil)
			require.NoError(t, err)
			w.nothingLeft()
		})
	}
}

func TestUnrescueExpired(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.RescueTimeout = time.Hour })
	w.glance.images.add(imageID, "active", nil)
	_, err := w.operate("rescue_instance", object.TaskStateRescuing, nil)
	require.NoError(t, err)
	require.NoError(t, w.unrescueExpired(adminContext(t.Context())))
	require.Equal(t, "rescued/-/"+testHost, w.nova.States(uuid))
	w.nova.Update(uuid, map[string]any{"launched_at": "2020-01-01T00:00:00Z"})
	require.NoError(t, w.unrescueExpired(adminContext(t.Context())))
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.Manager.opts.RescueTimeout = 0
	w.nova.ClearLog()
	require.NoError(t, w.unrescueExpired(adminContext(t.Context())))
	require.Empty(t, w.nova.Log())
}
