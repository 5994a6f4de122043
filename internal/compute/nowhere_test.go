package compute

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/internal/compute/nowhere"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// pretend makes a world's host one of the fake driver, as the command does; again: as after a restart of its agent.
func (w *world) pretend() *world {
	w.t.Helper()
	deps := w.Deps
	w.drain()
	tree := w.t.(*testing.T).TempDir()
	deps.Roots = nowhere.Roots{Tree: tree, Size: storage.Usage{Total: 100 << 30, Free: 100 << 30}}
	deps.Ephemeral, deps.Images, deps.Drives, deps.Plugger = nowhere.Disks{}, nowhere.Images{Tree: tree}, nowhere.Drives{}, nowhere.Plugger{}
	deps.Shares = nowhere.Shares{}
	var err error
	w.driver, err = fake.Open(w.DB)
	require.NoError(w.t, err)
	deps.Driver = w.driver
	w.opts.VIFPluggingTimeout, w.opts.EmptyImage = 0, tree
	w.Manager = New(w.opts, deps)
	return w
}

// untouched requires that nothing but the control plane was asked.
func (w *world) untouched() {
	w.t.Helper()
	for _, line := range w.trail.all() {
		for _, step := range []string{"root.", "ephemeral.", "plug", "unplug"} {
			require.False(w.t, strings.HasPrefix(line, step), line)
		}
		require.False(w.t, strings.HasPrefix(line, "glance GET") && strings.HasSuffix(line, "/file"), line)
	}
	found, err := filepath.Glob(filepath.Join(w.Roots.(nowhere.Roots).Tree, "*"))
	require.NoError(w.t, err)
	require.Empty(w.t, found)
}

func (w *world) guestIs(want driver.PowerState) {
	w.t.Helper()
	info, err := w.Driver.Info(w.t.Context(), uuid)
	require.NoError(w.t, err)
	require.Equal(w.t, want, info.PowerState)
}

// TestServerOfTheFakeDriver takes a server through its life on a host that has nothing.
func TestServerOfTheFakeDriver(t *testing.T) {
	t.Parallel()
	w := newWorld(t).pretend()
	_, err := w.call(user(t), "build_and_run_instance", w.buildArgs(nil)) // no event comes of its port
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.guestIs(driver.PowerStateRunning)
	w.glance.images.add(otherImage, "active", nil)
	w.glance.images.add(newImage, "queued", nil)
	for _, o := range []struct {
		method, task string
		args         map[string]any
		states       string
		power        driver.PowerState
	}{
		{"pause_instance", object.TaskStatePausing, nil, "paused/-/", driver.PowerStatePaused},
		{"unpause_instance", object.TaskStateUnpausing, nil, "active/-/", driver.PowerStateRunning},
		{"suspend_instance", object.TaskStateSuspending, nil, "suspended/-/", driver.PowerStateSuspended},
		{"resume_instance", object.TaskStateResuming, nil, "active/-/", driver.PowerStateRunning},
		{"snapshot_instance", object.TaskStateImageSnapshotPending, map[string]any{"image_id": newImage}, "active/-/", driver.PowerStateRunning},
		{"rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage), "active/-/", driver.PowerStateRunning},
		{"stop_instance", object.TaskStatePoweringOff, nil, "stopped/-/", driver.PowerStateShutdown},
		{"start_instance", object.TaskStatePoweringOn, nil, "active/-/", driver.PowerStateRunning},
	} {
		_, err := w.operate(o.method, o.task, o.args)
		require.NoError(t, err, o.method)
		require.Equal(t, o.states+testHost, w.nova.States(uuid), o.method)
		w.guestIs(o.power)
	}
	require.Equal(t, "active", w.glance.images.field(newImage, "status"))
	_, names := packed(t, w.glance.images.content(newImage))
	require.Equal(t, []string{"metadata.yaml", "rootfs/"}, names)
	_, err = w.operate("set_admin_password", "updating_password", map[string]any{"new_pass": "s3cret"})
	require.True(t, exception.Is(err, "SetAdminPasswdNotSupported"), "%v", err)
	w.nova.Update(uuid, map[string]any{"task_state": nil})

	w.pretend() // a restart
	require.NoError(t, w.InitHost(t.Context()))
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.guestIs(driver.PowerStateRunning)

	_, err = w.operate("terminate_instance", "deleting", map[string]any{"bdms": []any{}})
	require.NoError(t, err)
	w.untouched()
	w.nothingLeft()
}

// TestMoveOfAFakeServer moves one to a host of its kind; one of the other kind takes none.
func TestMoveOfAFakeServer(t *testing.T) {
	source := newWorld(t).pretend()
	_, err := source.call(user(t), "build_and_run_instance", source.buildArgs(nil))
	require.NoError(t, err)
	real := newWorldBeside(t, "zed", source, ownIDs(t), func(o *Options) { o.Host = "real" })
	args := prepare(source, real, source.flavorOf(map[string]any{"id": 99}))
	_, err = real.handler("prep_resize")(user(t), args)
	require.NoError(t, err)
	real.drain()
	require.Equal(t, "active/-/"+testHost, source.nova.States(uuid))
	source.guestIs(driver.PowerStateRunning)
	source.trail.clear() // of the image, too

	destination := newWorldBeside(t, "zed", source, func(o *Options) { o.Host = otherHost }).pretend()
	destination.step("prep_resize", prepare(source, destination, source.flavorOf(map[string]any{"id": 99, "memory_mb": 128})))
	source.next("resize_instance")
	destination.next("finish_resize")
	require.Equal(t, "resized/-/"+otherHost, source.nova.States(uuid))
	destination.guestIs(driver.PowerStateRunning)
	source.step("confirm_resize", rpc.Args{
		"instance": source.nova.Instance(uuid, "system_metadata"), "migration": novatest.Object("Migration", source.nova.Migration(migrationUUID)),
	})
	require.Equal(t, "active/-/"+otherHost, source.nova.States(uuid))
	local, err := source.localInstances(t.Context())
	require.NoError(t, err)
	require.Empty(t, local)
	source.untouched()
	destination.untouched()
}
