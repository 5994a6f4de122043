package compute

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// crashed is a world whose agent built the captured server, with the user's own port and
// another, and ended before the journal was told.
func crashed(t testing.TB, states map[string]any, change func(*journal.Entry)) *world {
	t.Helper()
	w := newWorld(t)
	w.neutron.addPort("own")
	args := w.buildArgs(map[string]any{"requested_networks": requested(map[string]any{"port_id": "own"}, map[string]any{"network_id": networkID})})
	w.plugEvents("completed")
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.nova.Update(uuid, states)
	w.interrupted(journal.BuildMethod, args, change)
	w.restarted()
	return w
}

func (w *world) start() {
	w.t.Helper()
	require.NoError(w.t, w.InitHost(w.t.Context()))
	w.drain()
}

// TestResume: every point at which an agent can have ended during a build, by what the
// control plane knows of it.
func TestResume(t *testing.T) {
	t.Parallel()
	own := []string{"own=@"}
	for _, c := range []struct {
		name    string
		states  map[string]any
		entry   func(*journal.Entry)
		want    string
		rebuilt bool
		removed bool // nothing is left here
		ports   []string
	}{
		{
			"before the claim",
			map[string]any{"vm_state": "building", "task_state": "scheduling", "host": nil, "node": nil},
			nil,
			"active/-/" + testHost, true, false, nil,
		},
		{"after the claim", map[string]any{"vm_state": "building", "task_state": nil}, nil, "active/-/" + testHost, true, false, nil},
		{"during the preparation", map[string]any{"vm_state": "building", "task_state": "networking"}, nil, "active/-/" + testHost, true, false, nil},
		{"while it spawned", map[string]any{"vm_state": "building", "task_state": "spawning"}, nil, "active/-/" + testHost, true, false, nil},
		{"after the last save", nil, nil, "active/-/" + testHost, false, false, nil},
		{"stopped since", map[string]any{"vm_state": "stopped", "power_state": 4}, nil, "stopped/-/" + testHost, false, false, nil},
		{"deleted by the API", map[string]any{"deleted": true}, nil, "active/-/" + testHost, false, true, own},
		{"being deleted", map[string]any{"task_state": "deleting"}, nil, "deleted/-/" + testHost, false, true, own},
		{
			"on another host",
			map[string]any{"host": "other", "node": "other"},
			nil, "active/-/other", false, true,
			[]string{"own=" + uuid + "@" + testHost, "port-2=" + uuid + "@" + testHost},
		},
		{
			"failed",
			map[string]any{"vm_state": "error", "host": nil, "node": nil},
			nil, "error/-/-", false, true,
			[]string{"own=" + uuid + "@" + testHost, "port-2=" + uuid + "@" + testHost},
		},
		{
			"handed back, not yet given up",
			map[string]any{"vm_state": "building", "task_state": "spawning"},
			func(e *journal.Entry) { e.HandedBack = true },
			"active/-/" + testHost, true, false, nil,
		},
		{
			"handed back",
			map[string]any{"vm_state": "building", "task_state": "scheduling", "host": nil, "node": nil},
			func(e *journal.Entry) { e.HandedBack = true }, "error/-/-", false, true,
			[]string{"own=" + uuid + "@" + testHost, "port-2=" + uuid + "@" + testHost},
		},
		{
			"interrupted too often",
			map[string]any{"vm_state": "building", "task_state": "spawning"},
			func(e *journal.Entry) { e.Resumed = maxResumes },
			"error/-/-", false, true, own,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := crashed(t, c.states, c.entry)
			before, _ := w.driver.Instance(uuid)
			if c.states["vm_state"] == "stopped" {
				w.driver.SetState(uuid, driver.PowerStateShutdown)
			}
			w.start()
			require.Equal(t, c.want, w.nova.States(uuid))
			guest, here := w.driver.Instance(uuid)
			require.Equal(t, !c.removed, here)
			if here && c.states["vm_state"] != "stopped" {
				require.Equal(t, c.rebuilt, guest.InitPID != before.InitPID, "a guest that is not to be built again runs on")
			}
			if c.removed {
				local, err := w.localInstances(t.Context())
				require.NoError(t, err)
				require.Empty(t, local)
				require.Empty(t, w.plugger.plugged())
			}
			if c.rebuilt {
				require.Len(t, guest.NICs, 2)
				require.True(t, w.instance("info_cache").NetworkInfo()[0].PreserveOnDelete)
				require.Equal(t, 2, w.nova.VIFs(uuid), "the user's own port is recorded once more, and only once")
				require.Len(t, w.neutron.state(), 2)
				require.Empty(t, w.nova.LogOf("InstanceActionEvent.event_start"), "the event is the interrupted build's")
				require.Len(t, w.nova.LogOf("InstanceActionEvent.event_finish"), 1)
			}
			if c.ports != nil {
				require.Equal(t, c.ports, w.neutron.state())
			}
			w.noJournal()
		})
	}
}

// TestResumeIsCounted: a build that ends the agent each time is not taken up for ever.
func TestResumeIsCounted(t *testing.T) {
	t.Parallel()
	w := crashed(t, map[string]any{"vm_state": "building", "task_state": "spawning"}, nil)
	release := w.trail.block("root.create")
	require.NoError(t, w.InitHost(t.Context()))
	eventually(t, "the build has begun", func() bool { return w.trail.has("root.create " + uuid) })
	entry, ok := w.journaled()
	require.True(t, ok)
	require.Equal(t, 1, entry.Resumed)
	release()
	w.drain()
	w.noJournal()
}

func TestResumeWithoutConductor(t *testing.T) {
	t.Parallel()
	w := crashed(t, map[string]any{"vm_state": "building", "task_state": "spawning"}, nil)
	w.nova.Fail("Instance.get_by_uuid", errBoom)
	w.start()
	_, ok := w.journaled()
	require.True(t, ok, "what cannot be decided waits for the next start")
	w.restarted()
	w.start()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}

func TestResumeOfAnUnreadableEntry(t *testing.T) {
	t.Parallel()
	w := crashed(t, map[string]any{"vm_state": "building", "task_state": "spawning"}, func(e *journal.Entry) {
		e.Args = rpc.Args{"instance": json.RawMessage("7")}
	})
	w.start()
	require.Equal(t, "error/-/"+testHost, w.nova.States(uuid), "settled as one of which nothing is known")
	w.noJournal()
}

// TestDeleteOvertakesResume: a delete cancels a build that waits to be taken up again, and
// knows the ports that the user brought.
func TestDeleteOvertakesResume(t *testing.T) {
	t.Parallel()
	w := crashed(t, map[string]any{"vm_state": "building", "task_state": "spawning"}, nil)
	w.nova.SetNetworkInfo(uuid, "[]") // the crash came before it was stored
	unlock, err := w.locks.Lock(t.Context(), uuid)
	require.NoError(t, err)
	require.NoError(t, w.InitHost(t.Context()))
	w.nova.Update(uuid, map[string]any{"task_state": "deleting"})
	done := make(chan error, 1)
	go func() {
		_, err := w.handler("terminate_instance")(user(t), rpc.Args{"instance": w.nova.Instance(uuid)})
		done <- err
	}()
	eventually(t, "the build gives up", func() bool { return !w.journal.Building(uuid) })
	unlock()
	require.NoError(t, <-done)
	w.drain()
	require.Equal(t, "true", w.nova.Field(uuid, "deleted"))
	require.Equal(t, []string{"own=@"}, w.neutron.state())
	w.nothingLeft()
}

// TestLostBuilds: instances that the scheduler sent here and that nobody works on.
func TestLostBuilds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.buildArgs(nil) // stores the row and the allocation; its message is lost
	w.start()
	require.Equal(t, "error/-/-", w.nova.States(uuid))

	// When the message arrives after all, the server is built.
	w.nova.Update(uuid, map[string]any{"vm_state": "building", "task_state": "scheduling"})
	w.plugEvents("completed")
	args := w.buildArgs(nil)
	w.restarted()
	w.start()
	require.Equal(t, "error/-/-", w.nova.States(uuid))
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))

	for name, fail := range map[string]func(){
		"placement": func() { w.placement.SetDown(true) },
		"conductor": func() { w.placement.SetDown(false); w.nova.Fail("InstanceList.get_by_filters", errBoom) },
	} {
		fail()
		require.Error(t, w.failLostBuilds(t.Context(), nil), name)
	}
	w.placement.SetDown(false)
	w.nova.Update(uuid, map[string]any{"vm_state": "building", "task_state": "networking", "host": nil})
	require.NoError(t, w.failLostBuilds(t.Context(), nil))
	require.Equal(t, "building/networking/-", w.nova.States(uuid), "somebody works on it")
}

// TestBuildOnItsWay: the scheduler has booked this host for it, and the conductor has not sent it yet.
func TestBuildOnItsWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.lostBuildWait = time.Hour
	args := w.buildArgs(nil)
	w.plugEvents("completed")
	require.NoError(t, w.InitHost(t.Context()))
	eventually(t, "a look at it", func() bool { return len(w.nova.LogOf("InstanceList.get_by_filters")) > 0 })
	require.Equal(t, "building/scheduling/-", w.nova.States(uuid))
	_, err := w.handler("build_and_run_instance")(user(t), args)
	require.NoError(t, err)
	eventually(t, "the server", func() bool { return w.nova.States(uuid) == "active/-/"+testHost })
	w.Leave()
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}

func TestTwoBuildsOfOneInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	args := w.buildArgs(nil)
	w.plugEvents("completed")
	release := w.trail.block("root.create")
	for range 2 {
		_, err := w.handler("build_and_run_instance")(user(t), args)
		require.NoError(t, err)
	}
	eventually(t, "one of them", func() bool { return w.trail.has("root.create " + uuid) })
	release()
	w.drain()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid), "the second finds that it is not its to begin")
	w.noJournal()
}

func TestJournalOnAFullDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	args := w.buildArgs(nil)
	w.journal = journal.New(closedDB(t))
	_, err := w.call(user(t), "build_and_run_instance", args)
	require.NoError(t, err)
	require.Equal(t, "error/-/-", w.nova.States(uuid), "not begun, and not handed back unnoticed")
	require.NotEmpty(t, w.nova.Faults())
	w.journal = journal.New(w.DB)
}

func closedDB(t testing.TB) *state.DB {
	t.Helper()
	db, err := state.Open(t.TempDir() + "/closed.db")
	require.NoError(t, err)
	require.NoError(t, db.Close())
	return db
}

// TestStoreEndsWithItsContext: a wait for the conductor is no longer than its caller.
func TestStoreEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.storePause = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.store(ctx, func(context.Context) error { return rpc.ErrTimeout }), rpc.ErrTimeout)
	require.ErrorIs(t, w.store(t.Context(), func(context.Context) error { return errBoom }), errBoom)
}
