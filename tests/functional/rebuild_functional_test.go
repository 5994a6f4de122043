//go:build functional

package functional

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// copyOfBusybox is another image with the same bytes.
func copyOfBusybox(t *testing.T, name string) string {
	t.Helper()
	data, err := os.Open(shared.Plane.BusyboxPath())
	require.NoError(t, err)
	defer data.Close()
	id, err := shared.Admin.UploadImage(within(t, time.Minute), name, "raw", nil, data)
	require.NoError(t, err)
	dropImage(t, id)
	return id
}

func TestRebuild(t *testing.T) {
	for _, c := range []struct {
		name    string
		other   bool
		stopped bool
		flavor  func() string
	}{
		{"same image", false, false, func() string { return shared.Nano }},
		{"other image", true, false, func() string { return shared.Small }},
		{"stopped", false, true, func() string { return shared.Small }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := snapshot(t)
			server := boot(t, cloud.NewServer{Flavor: c.flavor()})
			answers(t, server)
			inside(t, server.ID, "touch", "/gone")
			status := "ACTIVE"
			if c.stopped {
				act(t, server.ID, "os-stop", nil, "SHUTOFF")
				status = "SHUTOFF"
			}
			image := shared.Busybox
			if c.other {
				image = copyOfBusybox(t, "rebuild-other")
			}
			running := snapshot(t)
			stop := follow(t, server.ID)
			require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "rebuild", map[string]any{
				"imageRef": image, "metadata": map[string]string{"built": "again"},
			}, nil))
			rebuilt := statusIn(t, time.Minute, server.ID, status)
			states := stop()
			sawTask(t, states, "rebuild")
			require.Equal(t, server.IP(), rebuilt.IP(), "the address is kept")
			events := actionEvents(t, server.ID, "rebuild")
			require.Contains(t, events, "compute_rebuild_instance Success")
			require.Equal(t, c.stopped, len(events) == 3, "%v", events)
			if c.stopped {
				require.Equal(t, 4, rebuilt.PowerState)
				act(t, server.ID, "os-start", nil, "ACTIVE")
			} else {
				asBefore(t, running)
			}
			answers(t, rebuilt)
			require.Equal(t, "new", inside(t, server.ID, "sh", "-c", "test -e /gone && echo old || echo new"))
			remove(t, server.ID)
			asBefore(t, before)
		})
	}
}

// TestRebuildFails: an image that cannot run here costs the server nothing but its state, and a rebuild again works.
func TestRebuildFails(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	inside(t, server.ID, "touch", "/kept")
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	_, err = file.WriteString("this is no archive")
	require.NoError(t, err)
	_, err = file.Seek(0, 0)
	require.NoError(t, err)
	bad, err := shared.Admin.UploadImage(within(t, time.Minute), "rebuild-bad", "raw", nil, file)
	require.NoError(t, err)
	dropImage(t, bad)

	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "rebuild", map[string]any{"imageRef": bad}, nil))
	require.Contains(t, errored(t, server.ID).Fault.Message, "is unacceptable")
	inside(t, server.ID, "test", "-e", "/kept")
	answers(t, server)

	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "rebuild", map[string]any{"imageRef": shared.Busybox}, nil))
	answers(t, statusIn(t, time.Minute, server.ID, "ACTIVE"))
	require.Equal(t, "new", inside(t, server.ID, "sh", "-c", "test -e /kept && echo old || echo new"))
}

// TestKilledWhileRebuilding: the next start finishes the rebuild.
func TestKilledWhileRebuilding(t *testing.T) {
	for _, after := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			before := snapshot(t)
			server := boot(t, cloud.NewServer{Flavor: shared.Small})
			answers(t, server)
			inside(t, server.ID, "touch", "/gone")
			require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "rebuild", map[string]any{"imageRef": shared.Busybox}, nil))
			time.Sleep(after)
			killAgent(t)
			startAgent(t)
			answers(t, statusIn(t, time.Minute, server.ID, "ACTIVE"))
			require.Equal(t, "new", inside(t, server.ID, "sh", "-c", "test -e /gone && echo old || echo new"))
			remove(t, server.ID)
			noAllocations(t, server.ID)
			asBefore(t, before)
		})
	}
}

// TestDeleteWhileRebuilding: a delete does not wait for a rebuild.
func TestDeleteWhileRebuilding(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Flavor: shared.Small})
	answers(t, server)
	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server.ID, "rebuild", map[string]any{"imageRef": shared.Busybox}, nil))
	eventually(t, 20*time.Second, "rebuild to begin", func(ctx context.Context) (bool, error) {
		now, err := shared.Admin.Server(ctx, server.ID)
		return now.TaskState != "", err
	})
	remove(t, server.ID)
	noAllocations(t, server.ID)
	asBefore(t, before)
}
