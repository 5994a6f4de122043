//go:build functional

package functional

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestSnapshot(t *testing.T) {
	for _, c := range []struct {
		name    string
		flavor  func() string
		state   string // before and after
		action  string
		vmState string
	}{
		{"running", func() string { return shared.Small }, "ACTIVE", "", "active"},
		{"running without a disk of its own", func() string { return shared.Nano }, "ACTIVE", "", "active"},
		{"stopped", func() string { return shared.Small }, "SHUTOFF", "os-stop", "stopped"},
		{"paused", func() string { return shared.Small }, "PAUSED", "pause", "paused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := snapshot(t)
			server := boot(t, cloud.NewServer{Flavor: c.flavor()})
			answers(t, server)
			inside(t, server.ID, "sh", "-c", "echo mine > /mark; chown 1000:1000 /mark; rm /etc/group; ln -s /nowhere /link")
			first := booted(t, server.ID)
			if c.action != "" {
				act(t, server.ID, c.action, nil, c.state)
			}
			running := snapshot(t)
			stop := follow(t, server.ID)
			id := createImage(t, server.ID, "snapshot-of-"+server.ID)
			image := imageActive(t, id)
			after := statusIn(t, time.Minute, server.ID, c.state)
			states := stop()
			sawTask(t, states, "image_")
			require.Equal(t, c.vmState, after.VMState)
			require.Equal(t, []string{"compute_snapshot_instance Success"}, actionEvents(t, server.ID, "createImage"))
			asBefore(t, running)
			if c.action == "" {
				require.Equal(t, first, booted(t, server.ID), "the guest was not restarted")
				answers(t, server)
			}
			require.Equal(t, imageRecord{
				ID: id, Name: "snapshot-of-" + server.ID, Status: "active", Size: image.Size, DiskFormat: "raw", ContainerFormat: "bare",
				ImageType: "snapshot", ImageState: "available", ImageLocation: "snapshot", InstanceUUID: server.ID,
				BaseImageRef: shared.Busybox, OwnerID: shared.Admin.ProjectID(),
			}, image)
			remove(t, server.ID)

			copied := boot(t, cloud.NewServer{Image: id, Name: "copy-of-" + server.ID})
			answers(t, copied)
			require.Equal(t, "mine", inside(t, copied.ID, "cat", "/mark"))
			require.Equal(t, "1000 1000", inside(t, copied.ID, "stat", "-c", "%u %g", "/mark"))
			require.Equal(t, "none", inside(t, copied.ID, "sh", "-c", "test -e /etc/group && echo there || echo none"))
			require.Equal(t, "/nowhere", inside(t, copied.ID, "readlink", "/link"))
			remove(t, copied.ID)
			asBefore(t, before)
		})
	}
}

// TestBackupRotation: the oldest backups go, those of another kind stay.
func TestBackupRotation(t *testing.T) {
	server := boot(t, cloud.NewServer{Flavor: shared.Small})
	answers(t, server)
	backup := func(name, kind string, keep int) {
		require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "createBackup",
			map[string]any{"name": name, "backup_type": kind, "rotation": keep}, nil))
		statusIn(t, 2*time.Minute, server.ID, "ACTIVE")
		require.Contains(t, actionEvents(t, server.ID, "createBackup"), "compute_backup_instance Success")
		time.Sleep(1100 * time.Millisecond) // Glance sorts by seconds
	}
	t.Cleanup(func() {
		for _, image := range images(t, server.ID) {
			require.NoError(t, shared.Admin.DeleteImage(context.Background(), image.ID))
		}
	})
	backup("weekly-1", "weekly", 2)
	for _, name := range []string{"daily-1", "daily-2", "daily-3"} {
		backup(name, "daily", 2)
	}
	var names []string
	for _, image := range images(t, server.ID) {
		require.Equal(t, "backup", image.ImageType)
		require.Equal(t, "active", image.Status)
		names = append(names, image.Name)
	}
	require.Equal(t, []string{"weekly-1", "daily-2", "daily-3"}, names)
}

// TestSnapshotCancelled: a delete of the server, or of the image, ends a snapshot that is under way.
func TestSnapshotCancelled(t *testing.T) {
	fill := []string{"sh", "-c", "dd if=/dev/urandom of=/large bs=1M count=600 2>/dev/null"}
	t.Run("server deleted", func(t *testing.T) {
		before := snapshot(t)
		server := boot(t, cloud.NewServer{Flavor: shared.Small})
		inside(t, server.ID, fill...)
		id := createImage(t, server.ID, "cancelled-by-server")
		uploading(t, server.ID)
		began := time.Now()
		remove(t, server.ID)
		t.Logf("deleted in %.1f s", time.Since(began).Seconds())
		noAllocations(t, server.ID)
		eventually(t, 30*time.Second, "image to go", func(ctx context.Context) (bool, error) {
			_, err := readImage(ctx, id)
			if cloud.IsStatus(err, http.StatusNotFound) {
				return true, nil
			}
			return false, err
		})
		asBefore(t, before)
	})
	t.Run("image deleted", func(t *testing.T) {
		server := boot(t, cloud.NewServer{Flavor: shared.Small})
		inside(t, server.ID, fill...)
		first := booted(t, server.ID)
		running := snapshot(t)
		id := createImage(t, server.ID, "cancelled-by-image")
		uploading(t, server.ID)
		require.NoError(t, shared.Admin.DeleteImage(within(t, 30*time.Second), id))
		now := statusIn(t, time.Minute, server.ID, "ACTIVE")
		require.Nil(t, now.Fault)
		require.Equal(t, first, booted(t, server.ID))
		asBefore(t, running)
	})
	t.Run("agent killed", func(t *testing.T) {
		server := boot(t, cloud.NewServer{Flavor: shared.Small})
		inside(t, server.ID, fill...)
		first := booted(t, server.ID)
		running := snapshot(t)
		id := createImage(t, server.ID, "agent-killed")
		uploading(t, server.ID)
		killAgent(t)
		startAgent(t)
		imageActive(t, id)
		statusIn(t, time.Minute, server.ID, "ACTIVE")
		require.Equal(t, first, booted(t, server.ID))
		asBefore(t, running)
	})
}

func uploading(t *testing.T, id string) {
	t.Helper()
	eventually(t, 30*time.Second, "upload to begin", func(ctx context.Context) (bool, error) {
		now, err := shared.Admin.Server(ctx, id)
		return now.TaskState == "image_uploading", err
	})
}
