package compute

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/vif"
)

// requireOff requires that a server is off, and that nothing of it is mounted.
func (w *world) requireOff() {
	w.t.Helper()
	state, err := w.powerState(w.t.Context(), uuid)
	require.NoError(w.t, err)
	require.True(w.t, isOff(state), "%s", state)
	require.Empty(w.t, w.mounts())
}

// mounts are what of the captured server is mounted.
func (w *world) mounts() []string {
	var mounts []string
	for what, is := range map[string]bool{
		"root disk": w.roots.isMounted(uuid), "rescue disk": w.roots.isMounted(uuid + rescueSuffix),
		"ephemeral disks": w.ephemeral.isMounted(uuid), "shares": w.shares.isMounted(uuid),
	} {
		if is {
			mounts = append(mounts, what)
		}
	}
	return mounts
}

// startFails makes every start fail.
func (w *world) startFails() {
	w.driver.Fail("Start", uuid, errBoom, errBoom, errBoom)
}

// withEverything is a flavor of which each kind of thing is mounted for a server.
var withEverything = map[string]any{"ephemeral_gb": 1, "extra_specs": map[string]any{"lxc:share:data": "/srv/data"}}

// TestFailedStartUnmounts: whatever starts a guest, if that fails nothing of the server stays mounted.
func TestFailedStartUnmounts(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(w *world){
		"start": func(w *world) {
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.operated("start_instance", object.TaskStatePoweringOn, nil)
		},
		"restore": func(w *world) {
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.operated("restore_instance", object.TaskStateRestoring, nil)
		},
		"reboot": func(w *world) {
			w.roots.healthy = true // and stays mounted meanwhile
			w.operated("reboot_instance", object.TaskStateRebootingHard, map[string]any{"reboot_type": "HARD"})
		},
		"resume after a reboot of the host": func(w *world) {
			w.operated("suspend_instance", object.TaskStateSuspending, nil)
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.operated("resume_instance", object.TaskStateResuming, nil)
		},
		"rescue": func(w *world) {
			w.operated("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
		},
		"unrescue": func(w *world) {
			w.driver.Forgive("Start", uuid)
			w.operated("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
			require.Contains(w.t, w.mounts(), "rescue disk")
			w.startFails()
			w.operated("unrescue_instance", object.TaskStateUnrescuing, nil)
		},
		"unrescue whose container is not made": func(w *world) {
			w.driver.Forgive("Start", uuid)
			w.operated("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
			w.driver.Fail("Create", uuid, errBoom)
			w.operated("unrescue_instance", object.TaskStateUnrescuing, nil)
		},
		"reboot of a rescue": func(w *world) {
			w.driver.Forgive("Start", uuid)
			w.operated("rescue_instance", object.TaskStateRescuing, map[string]any{"rescue_image_ref": otherImage})
			w.startFails()
			w.operated("reboot_instance", object.TaskStateRebootingHard, map[string]any{"reboot_type": "HARD"})
		},
		"rebuild": func(w *world) {
			w.nova.Update(uuid, map[string]any{"image_ref": otherImage})
			w.operated("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(w.t, otherImage))
		},
		"rebuild whose container is not made": func(w *world) {
			w.driver.Fail("Create", uuid, errBoom)
			w.nova.Update(uuid, map[string]any{"image_ref": otherImage})
			w.operated("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(w.t, otherImage))
		},
		"shelve that fails": func(w *world) {
			w.glance.images.add(newImage, "queued", nil)
			w.trail.fail("glance PUT", errBoom, errBoom)
			w.operated("shelve_instance", object.TaskStateShelving, map[string]any{"image_id": newImage})
		},
		"host reboot": func(w *world) {
			w.Manager.opts.ResumeGuestsOnHostBoot, w.opts.ResumeGuestsOnHostBoot = true, true
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.plugger.ports = map[string]vif.VIF{}
			w.restarted()
			w.startFails()
			w.start()
		},
		"guest reboots itself": func(w *world) {
			w.driver.Reboot(uuid)
			require.NoError(w.t, w.followGuest(w.t.Context(), uuid))
		},
		"resume of a reboot": func(w *world) {
			w.nova.Update(uuid, map[string]any{"task_state": "reboot_started"})
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.restarted()
			w.start()
		},
		"port not plugged": func(w *world) {
			w.driver.SetState(uuid, driver.PowerStateShutdown)
			w.trail.fail("plug", errBoom)
			w.operated("start_instance", object.TaskStatePoweringOn, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := builtWith(t, withEverything, nil)
			w.glance.images.add(otherImage, "active", nil)
			require.Len(t, w.mounts(), 3)
			w.startFails()
			start(w)
			w.requireOff()
			require.Equal(t, []string{"port-1"}, w.plugger.plugged(), "a server that is off keeps its place in the network")
			if _, made := w.driver.Instance(uuid); !made {
				return // a rebuild that left no container has to come again
			}
			w.driver.Forgive("Start", uuid)
			w.nova.Update(uuid, map[string]any{"vm_state": object.VMStateStopped})
			_, err := w.operate("start_instance", object.TaskStatePoweringOn, nil)
			require.NoError(t, err)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
		})
	}
}

// operated is operate of what may fail.
func (w *world) operated(method, task string, more map[string]any) {
	w.t.Helper()
	if _, err := w.operate(method, task, more); err != nil {
		w.t.Logf("%s: %v", method, err)
	}
}

// TestMoveWhoseGuestDoesNotStart, on either host, leaves nothing mounted there.
func TestMoveWhoseGuestDoesNotStart(t *testing.T) {
	was := withEverything
	wanted := map[string]any{"id": 99, "ephemeral_gb": 1, "memory_mb": 128, "extra_specs": withEverything["extra_specs"]}
	begin := func(t *testing.T) (source, destination *world) {
		t.Helper()
		source, destination = twoHostsWith(t, was, nil)
		destination.step("prep_resize", prepareDisks(source, destination, was, wanted))
		return source, destination
	}
	for name, fail := range map[string]func(w *world){
		"start": (*world).startFails,
		"port":  func(w *world) { w.trail.fail("plug", errBoom) },
		"guest": func(w *world) { w.driver.Fail("Create", uuid, errBoom) },
	} {
		t.Run("finish "+name, func(t *testing.T) {
			source, destination := begin(t)
			source.next("resize_instance")
			fail(destination)
			destination.next("finish_resize")
			require.Equal(t, "error/-/"+otherHost, source.nova.States(uuid))
			require.Empty(t, destination.mounts())
			require.Empty(t, source.mounts())
		})
	}
	t.Run("revert", func(t *testing.T) {
		source, destination := begin(t)
		source.next("resize_instance")
		destination.next("finish_resize")
		destination.step("revert_resize", revertArgs(source))
		source.startFails()
		source.next("finish_revert_resize")
		require.Equal(t, "error/-/"+testHost, source.nova.States(uuid))
		source.requireOff()
	})
	t.Run("rollback", func(t *testing.T) {
		source, _ := begin(t)
		source.nova.Fail("Migration.save", nil, errBoom)
		source.startFails()
		source.next("resize_instance")
		require.Equal(t, "error/-/"+testHost, source.nova.States(uuid))
		source.requireOff()
	})
	t.Run("rollback after a restart", func(t *testing.T) {
		source, _ := begin(t)
		source.endOffer(uuid)
		source.driver.SetState(uuid, driver.PowerStateShutdown)
		source.startFails()
		inst := source.instance("metadata", "system_metadata", "info_cache", "flavor")
		require.ErrorIs(t, source.completeMigrating(t.Context(), inst), errBoom)
		source.requireOff()
	})
}

// TestResizeHereWhoseGuestDoesNotStart: the same for each reason to stop a guest for a resize, and for one to take it back.
func TestResizeHereWhoseGuestDoesNotStart(t *testing.T) {
	data := withEverything["extra_specs"]
	for name, c := range map[string]struct {
		was, wanted map[string]any
		fail        func(w *world)
	}{
		"root disk": {
			map[string]any{"root_gb": 1, "extra_specs": data},
			map[string]any{"id": 99, "root_gb": 7, "extra_specs": data},
			func(w *world) { w.trail.fail("root.grow", storage.ErrBusy) },
		},
		"limits": {
			map[string]any{"extra_specs": data},
			map[string]any{"id": 99, "memory_mb": 128, "extra_specs": data},
			func(w *world) { w.driver.Fail("SetLimits", uuid, driver.ErrNeedsRestart) },
		},
		"another disk":           {map[string]any{"ephemeral_gb": 0}, map[string]any{"id": 99, "ephemeral_gb": 2}, nil},
		"a share":                {nil, map[string]any{"id": 99, "extra_specs": data}, nil},
		"a share, not described": {nil, map[string]any{"id": 99, "extra_specs": data}, func(w *world) { w.driver.Fail("Create", uuid, errBoom) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := builtWith(t, c.was, nil, ownIDs(t))
			w.step("prep_resize", prepareDisks(w, w, c.was, c.wanted))
			w.next("resize_instance")
			if c.fail != nil {
				c.fail(w)
			}
			w.startFails()
			w.next("finish_resize")
			require.Equal(t, "error/-/"+testHost, w.nova.States(uuid))
			w.requireOff()
		})
	}
	t.Run("revert", func(t *testing.T) {
		was := map[string]any{"ephemeral_gb": 0}
		w := builtWith(t, was, nil, ownIDs(t))
		w.step("prep_resize", prepareDisks(w, w, was, map[string]any{"id": 99, "ephemeral_gb": 2}))
		w.next("resize_instance")
		w.next("finish_resize")
		require.Equal(t, "resized/-/"+testHost, w.nova.States(uuid))
		w.startFails()
		w.step("revert_resize", revertArgs(w))
		w.next("finish_revert_resize")
		require.Equal(t, "error/-/"+testHost, w.nova.States(uuid))
		w.requireOff()
	})
}

// TestFailedStartLeavesMounted what a guest uses that runs in spite of the failure, and what the next agent goes on with.
func TestFailedStartLeavesMounted(t *testing.T) {
	t.Parallel()
	t.Run("guest runs", func(t *testing.T) {
		t.Parallel()
		w := built(t)
		require.ErrorIs(t, w.orOff(t.Context(), uuid, func() error { return errBoom }), errBoom)
		require.Equal(t, []string{"root disk"}, w.mounts())
	})
	t.Run("power state unknown", func(t *testing.T) {
		t.Parallel()
		w := built(t)
		w.driver.SetState(uuid, driver.PowerStateShutdown)
		w.driver.Fail("Info", uuid, errBoom)
		require.ErrorIs(t, w.orOff(t.Context(), uuid, func() error { return errBoom }), errBoom)
		require.Equal(t, []string{"root disk"}, w.mounts())
	})
	t.Run("agent leaves", func(t *testing.T) {
		t.Parallel()
		w := built(t)
		w.driver.SetState(uuid, driver.PowerStateShutdown)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, w.orOff(ctx, uuid, func() error { return errBoom }), errBoom)
		require.ErrorIs(t, w.orOff(t.Context(), uuid, func() error { return errLeaving }), errLeaving)
		require.Equal(t, []string{"root disk"}, w.mounts())
	})
	t.Run("caller gives up", func(t *testing.T) {
		t.Parallel()
		w := built(t)
		w.driver.SetState(uuid, driver.PowerStateShutdown)
		ctx, cancel := context.WithTimeout(t.Context(), 0)
		defer cancel()
		require.ErrorIs(t, w.orOff(ctx, uuid, func() error { return ctx.Err() }), context.DeadlineExceeded)
		w.requireOff()
	})
}
