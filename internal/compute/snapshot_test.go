package compute

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const newImage = "bbbbbbbb-0000-4000-8000-000000000002"

// packed reads a unified image: its metadata and the names in it.
func packed(t testing.TB, data []byte) (imagesync.Metadata, []string) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	defer z.Close()
	var meta imagesync.Metadata
	var names []string
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return meta, names
		}
		require.NoError(t, err)
		names = append(names, h.Name)
		if h.Name == "metadata.yaml" {
			meta, err = imagesync.ParseMetadata(archive)
			require.NoError(t, err)
		}
	}
}

func TestSnapshotInstance(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		state  driver.PowerState
		vm     string
		source string // root disk that is packed
		trail  []string
		calls  []string
	}{
		{
			"running", driver.PowerStateRunning, "active", uuid + ".snapshot",
			[]string{"root.mount " + uuid, "root.delete " + uuid + ".snapshot", "root.copy " + uuid, "root.mount " + uuid + ".snapshot", "root.delete " + uuid + ".snapshot"},
			[]string{"Pause " + uuid, "Unpause " + uuid},
		},
		{
			"paused", driver.PowerStatePaused, "paused", uuid + ".snapshot",
			[]string{"root.delete " + uuid + ".snapshot", "root.copy " + uuid, "root.mount " + uuid + ".snapshot", "root.delete " + uuid + ".snapshot"},
			[]string{},
		},
		{"stopped", driver.PowerStateShutdown, "stopped", uuid, []string{"root.mount " + uuid, "root.unmount " + uuid}, []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t).both()
			w.glance.images.add(newImage, "queued", map[string]any{"name": "snap"})
			w.driver.SetState(uuid, c.state)
			w.nova.Update(uuid, map[string]any{"vm_state": c.vm})
			calls := len(w.driver.Calls())
			_, err := w.operate("snapshot_instance", object.TaskStateImageSnapshotPending, map[string]any{"image_id": newImage})
			require.NoError(t, err)
			require.Equal(t, []string{
				`Instance.save task_state="image_snapshot" if task_state=["image_snapshot_pending"]`,
				`Instance.save power_state=` + string(novatest.Raw(int(c.state))),
				`Instance.save task_state="image_pending_upload" if task_state=["image_snapshot"]`,
				`Instance.save task_state="image_uploading" if task_state=["image_pending_upload"]`,
				`Instance.save task_state=null if task_state=["image_uploading"]`,
			}, w.saves())
			w.toldAs("image-create", map[string]any{
				"compute.instance.snapshot.start state": c.vm, "instance.snapshot.start state": c.vm, "instance.snapshot.start power_state": c.state.String(),
				"compute.instance.snapshot.end state": c.vm, "instance.snapshot.end state": c.vm, "instance.snapshot.end power_state": c.state.String(),
			})
			require.Equal(t, c.vm+"/-/"+testHost, w.nova.States(uuid))
			require.Equal(t, c.trail, slices.DeleteFunc(w.trail.all(), func(line string) bool { return line[0] == 'g' }))
			require.Equal(t, c.calls, slices.DeleteFunc(w.driver.Calls()[calls:], func(call string) bool { return call[0] == 'I' }))
			guest, _ := w.driver.Instance(uuid)
			require.Equal(t, c.state, guest.State)
			for field, want := range map[string]any{
				"status": "active", "name": "snap", "disk_format": "raw", "container_format": "bare", "kernel_id": nil, "ramdisk_id": nil,
				"image_location": "snapshot", "image_state": "available", "owner_id": projectID,
			} {
				require.Equal(t, want, w.glance.images.field(newImage, field), field)
			}
			meta, names := packed(t, w.glance.images.content(newImage))
			require.Equal(t, "x86_64", meta.Architecture)
			require.Equal(t, uuid, meta.Properties["instance_uuid"])
			require.Equal(t, []string{"metadata.yaml", "rootfs/", "rootfs/etc/", "rootfs/etc/init"}, names)
			require.Contains(t, w.trail.all(), "root.mount "+c.source)
			w.done()
		})
	}
}

// TestSnapshotWithoutCopy: where the root disk cannot be copied the guest is frozen until it is packed, and no longer.
func TestSnapshotWithoutCopy(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{storage.ErrUnsupported, storage.ErrNoSpace} {
		w := built(t)
		w.glance.images.add(newImage, "queued", nil)
		w.trail.fail("root.copy", cause)
		release := w.trail.block("glance PUT")
		defer release()
		w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateImageSnapshotPending})
		_, err := w.handler("snapshot_instance")(user(t), map[string]rawJSON{
			"instance": w.nova.Instance(uuid, "metadata", "system_metadata"), "image_id": novatest.Raw(newImage),
		})
		require.NoError(t, err)
		eventually(t, "upload to begin", func() bool { return w.trail.has("glance PUT /images/" + newImage + "/file") })
		guest, _ := w.driver.Instance(uuid)
		require.Equal(t, driver.PowerStatePaused, guest.State)
		release()
		w.drain()
		guest, _ = w.driver.Instance(uuid)
		require.Equal(t, driver.PowerStateRunning, guest.State)
		require.Equal(t, "active", w.glance.images.field(newImage, "status"))
		require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	}
}

// TestSnapshotFailures: the server is as before and no image without data stays.
func TestSnapshotFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setUp func(w *world)
		fault string // "": none
		left  bool   // the image stays
	}{
		{"image is gone", func(w *world) { w.glance.images.remove(newImage) }, "", false},
		{"image has data already", func(w *world) { w.glance.images.add(newImage, "active", nil) }, "takes no data", true},
		{"guest does not freeze", func(w *world) { w.driver.Fail("Pause", "", driver.ErrTimeout) }, "respond", false},
		{"disk is broken", func(w *world) { w.trail.fail("root.copy", errBoom) }, "boom", false},
		{"glance does not answer", func(w *world) { w.trail.fail("glance PUT", errBoom, errBoom, errBoom, errBoom) }, "", false},
		{"instance is being deleted", func(w *world) { w.nova.Fail("Instance.save", novatest.Failure("UnexpectedDeletingTaskStateError")) }, "", false},
		{"instance is gone", func(w *world) { w.nova.Fail("Instance.save", novatest.Failure("InstanceNotFound")) }, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.glance.images.add(newImage, "queued", nil)
			c.setUp(w)
			_, err := w.operate("snapshot_instance", object.TaskStateImageSnapshotPending, map[string]any{"image_id": newImage})
			require.NoError(t, err)
			guest, _ := w.driver.Instance(uuid)
			require.Equal(t, driver.PowerStateRunning, guest.State)
			if c.fault != "" {
				require.Len(t, w.nova.Faults(), 1)
				require.Contains(t, w.nova.Faults()[0], c.fault)
			}
			require.Equal(t, c.left, slices.Contains(w.glance.images.ids(), newImage))
			w.done()
		})
	}
}

// TestSnapshotIsSentAgain: a connection that does not hold costs another attempt, not the snapshot.
func TestSnapshotIsSentAgain(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.UploadRetries = 1 })
	w.glance.images.add(newImage, "queued", nil)
	w.trail.fail("glance PUT", errBoom)
	_, err := w.operate("snapshot_instance", object.TaskStateImageSnapshotPending, map[string]any{"image_id": newImage})
	require.NoError(t, err)
	require.Equal(t, "active", w.glance.images.field(newImage, "status"))
	_, names := packed(t, w.glance.images.content(newImage))
	require.Len(t, names, 4)
}

// TestSoftDeleteEndsSnapshot: it does not wait for an upload.
func TestSoftDeleteEndsSnapshot(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(newImage, "queued", nil)
	release := w.trail.block("glance PUT")
	defer release()
	w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateImageSnapshotPending})
	_, err := w.handler("snapshot_instance")(user(t), map[string]rawJSON{
		"instance": w.nova.Instance(uuid, "metadata", "system_metadata"), "image_id": novatest.Raw(newImage),
	})
	require.NoError(t, err)
	eventually(t, "upload to begin", func() bool { return w.trail.has("glance PUT /images/" + newImage + "/file") })
	_, err = w.operate("soft_delete_instance", object.TaskStateSoftDeleting, nil)
	require.NoError(t, err)
	require.Equal(t, "soft-delete/-/"+testHost, w.nova.States(uuid))
	require.Empty(t, w.glance.images.ids())
	require.Empty(t, w.nova.Faults())
	w.done()
}

func TestBackupRotates(t *testing.T) {
	t.Parallel()
	w := built(t).both()
	backup := map[string]any{"image_type": "backup", "backup_type": "daily", "instance_uuid": uuid}
	for _, id := range []string{"oldest", "older", "old"} {
		w.glance.images.add(id, "active", backup)
	}
	w.glance.images.add("weekly", "active", map[string]any{"image_type": "backup", "backup_type": "weekly", "instance_uuid": uuid})
	w.glance.images.add("another-server", "active", map[string]any{"image_type": "backup", "backup_type": "daily", "instance_uuid": "x"})
	w.glance.images.add(newImage, "queued", backup)
	_, err := w.operate("backup_instance", object.TaskStateImageBackup, map[string]any{"image_id": newImage, "backup_type": "daily", "rotation": 2})
	require.NoError(t, err)
	w.toldAs("backup", nil)
	require.Equal(t, `Instance.save task_state="image_pending_upload" if task_state=["image_backup"]`, w.saves()[1])
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Equal(t, []string{"another-server", newImage, "old", "weekly"}, w.glance.images.ids())
	require.Empty(t, w.nova.Faults())
}

// TestSnapshotsTakeTurns: max_concurrent_snapshots bounds them, and other operations do not wait.
func TestSnapshotsTakeTurns(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.MaxConcurrentSnapshots = 1 })
	require.True(t, w.snapshots.TryAcquire(1))
	w.glance.images.add(newImage, "queued", nil)
	w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateImageSnapshotPending})
	_, err := w.handler("snapshot_instance")(user(t), map[string]rawJSON{
		"instance": w.nova.Instance(uuid, "metadata", "system_metadata"), "image_id": novatest.Raw(newImage),
	})
	require.NoError(t, err)
	eventually(t, "snapshot to wait", func() bool { return w.nova.Field(uuid, "task_state") == object.TaskStateImageSnapshot })
	_, err = w.handler("terminate_instance")(user(t), map[string]rawJSON{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")})
	require.NoError(t, err, "a delete does not wait for the snapshot's turn")
	w.snapshots.Release(1)
	w.drain()
	require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
	require.Empty(t, w.glance.images.ids(), "the image goes with it")
	w.nothingLeft()
}
