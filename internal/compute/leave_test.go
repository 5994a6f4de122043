package compute

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// waitsForPort tells whether somebody waits for a port to be wired.
func (w *world) waitsForPort() bool { return len(w.waiters.Keys()) > 0 }

// leave ends the agent as SIGTERM does, and requires that this is a matter of a moment.
func (w *world) leave() {
	w.t.Helper()
	w.Leave()
	w.drain()
}

// TestLeaveBuild: a build that waits is the next start's to finish, whatever it waits for; nobody hears of a failure.
func TestLeaveBuild(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		setUp func(w *world)
		waits func(w *world) bool
		want  string
	}{
		"for its port": {
			func(*world) {},
			func(w *world) bool { return w.waitsForPort() && w.nova.States(uuid) == "building/spawning/"+testHost },
			"building/spawning/" + testHost,
		},
		"for its image": {
			func(w *world) {
				w.plugEvents("completed")
				w.t.Cleanup(w.trail.block("glance GET"))
			},
			func(w *world) bool {
				return w.trail.has("glance GET /images/"+w.imageID()+"/file") && w.nova.States(uuid) == "building/spawning/"+testHost
			},
			"building/spawning/" + testHost,
		},
		"for its turn": {
			func(w *world) { require.True(w.t, w.builds.TryAcquire(1)) },
			func(w *world) bool { return w.journal.Building(uuid) },
			"building/scheduling/-",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.MaxConcurrentBuilds = 1 })
			c.setUp(w)
			_, err := w.handler(journal.BuildMethod)(user(t), w.buildArgs(nil))
			require.NoError(t, err)
			eventually(t, "the build to wait", func() bool { return c.waits(w) })
			w.leave()
			require.Equal(t, c.want, w.nova.States(uuid))
			require.Empty(t, w.nova.LogOf("InstanceFault.create"))
			require.Empty(t, w.nova.LogOf("InstanceActionEvent.event_finish"))
			local, err := w.localInstances(t.Context())
			require.NoError(t, err)
			require.Empty(t, local, "half a build is not left on the host")
			require.Contains(t, w.entries(), uuid)

			w.trail.flow()
			w.restarted()
			w.plugEvents("completed")
			w.start()
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			w.noJournal()
		})
	}
}

// imageID is the captured server's image.
func (w *world) imageID() string { return w.instance().ImageRef }

// TestLeaveIsNotCounted: of the starts that may take an operation up, those after a clean end are none.
func TestLeaveIsNotCounted(t *testing.T) {
	t.Parallel()
	w := crashed(t, map[string]any{"vm_state": "building", "task_state": "spawning"}, func(e *journal.Entry) { e.Resumed = maxResumes - 1 })
	w.nova.On("VirtualInterface.create", func() {}) // Neutron keeps quiet
	require.NoError(t, w.InitHost(t.Context()))
	eventually(t, "the build to wait", w.waitsForPort)
	entry, ok := w.journaled()
	require.True(t, ok)
	require.Equal(t, maxResumes, entry.Resumed)
	w.leave()
	entry, ok = w.journaled()
	require.True(t, ok)
	require.Zero(t, entry.Resumed)
	w.restarted()
	w.plugEvents("completed")
	w.start()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}

// TestLeaveAccepted: what comes in while the agent leaves is kept, and not begun.
func TestLeaveAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Leave()
	_, err := w.call(user(t), journal.BuildMethod, w.buildArgs(nil))
	require.NoError(t, err)
	require.Equal(t, "building/scheduling/-", w.nova.States(uuid))
	require.Contains(t, w.entries(), uuid)
}

// slowGuest is a driver whose guests do not halt before they are killed.
type slowGuest struct {
	*fake.Driver

	asked chan string // the method
}

func (d *slowGuest) Stop(ctx context.Context, uuid string, timeout, retry time.Duration) error {
	if timeout == 0 {
		return d.Driver.Stop(ctx, uuid, 0, retry)
	}
	_, err := d.wait(ctx, "stop", timeout)
	return err
}

func (d *slowGuest) Shutdown(ctx context.Context, _ string, timeout time.Duration) (bool, error) {
	return d.wait(ctx, "shutdown", timeout)
}

func (d *slowGuest) wait(ctx context.Context, method string, timeout time.Duration) (bool, error) {
	d.asked <- method
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(timeout):
		return false, nil
	}
}

// TestLeaveShutdown: the agent does not wait until a guest halts. Its next start asks it again.
func TestLeaveShutdown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, task, asked string
		args                map[string]any
		left, want          string
		journaled           bool
	}{
		{"stop_instance", object.TaskStatePoweringOff, "stop", map[string]any{"clean_shutdown": true}, "active/powering-off/", "stopped/-/", false},
		{"reboot_instance", object.TaskStateRebooting, "shutdown", map[string]any{"reboot_type": "SOFT"}, "active/reboot_pending/", "active/-/", false},
		{"rescue_instance", object.TaskStateRescuing, "stop", map[string]any{"clean_shutdown": true}, "active/rescuing/", "rescued/-/", true},
	} {
		t.Run(c.method, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.glance.images.add(imageID, "active", nil)
			before, _ := w.driver.Instance(uuid)
			slow := &slowGuest{w.driver, make(chan string, 1)}
			w.Driver = slow
			w.nova.Update(uuid, map[string]any{"task_state": c.task})
			args := rpc.Args{"instance": w.nova.Instance(uuid, "metadata", "system_metadata", "info_cache")}
			for name, value := range c.args {
				args[name] = novatest.Raw(value)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = w.handler(c.method)(user(t), args) // nobody is told of a message's outcome
			}()
			select {
			case asked := <-slow.asked:
				require.Equal(t, c.asked, asked)
			case <-time.After(patience):
				require.Fail(t, "the guest was not asked to halt")
			}
			w.leave()
			<-ended
			require.Equal(t, c.left+testHost, w.nova.States(uuid))
			require.Equal(t, c.journaled, len(w.entries()) == 1)
			require.Empty(t, w.nova.LogOf("InstanceFault.create"))
			require.Empty(t, w.nova.LogOf("InstanceActionEvent.event_finish"))
			now, _ := w.driver.Instance(uuid)
			require.Equal(t, before.InitPID, now.InitPID)

			w.restarted()
			w.Driver = w.driver // by now the guest halts
			w.start()
			require.Equal(t, c.want+testHost, w.nova.States(uuid))
			now, _ = w.driver.Instance(uuid)
			if c.want == "stopped/-/" {
				require.Equal(t, driver.PowerStateShutdown, now.State)
			} else {
				require.NotEqual(t, before.InitPID, now.InitPID, "the guest was started anew")
			}
			require.Equal(t, []string{"req-1 Success"}, w.results("compute_"+c.method), "one event, which the next start ends")
			w.noJournal()
		})
	}
}

// TestLeaveUpload: a snapshot that is on its way to Glance is begun anew by the next start; the guest is not kept frozen.
func TestLeaveUpload(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.glance.images.add(newImage, "queued", nil)
	w.t.Cleanup(w.trail.block("glance PUT"))
	w.nova.Update(uuid, map[string]any{"task_state": object.TaskStateImageSnapshotPending})
	_, err := w.handler("snapshot_instance")(user(t), map[string]rawJSON{
		"instance": w.nova.Instance(uuid, "metadata", "system_metadata"), "image_id": novatest.Raw(newImage),
	})
	require.NoError(t, err)
	eventually(t, "upload to begin", func() bool { return w.trail.has("glance PUT /images/" + newImage + "/file") })
	w.leave()
	require.Contains(t, w.entries(), uuid)
	require.NotEqual(t, "active/-/"+testHost, w.nova.States(uuid))
	guest, _ := w.driver.Instance(uuid)
	require.Equal(t, driver.PowerStateRunning, guest.State)
	w.trail.flow()
	w.restarted()
	w.start()
	require.Equal(t, "active", w.glance.images.field(newImage, "status"))
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.noJournal()
}
