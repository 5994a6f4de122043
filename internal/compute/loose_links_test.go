package compute

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/nowhere"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/vif"
)

var (
	loosePort   = vif.Marked{Instance: uuid, What: vif.MarkedOVSPort, Name: "tap1"}
	looseDevice = vif.Marked{Instance: uuid, What: vif.MarkedDevice, Name: "tap1"}
	heldDevice  = vif.Marked{Instance: uuid, What: vif.MarkedDevice, Name: "tap1", InUse: true}
)

// TestTellLooseLinks: what an operator is told of links that no record has, and when they go.
func TestTellLooseLinks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		states    map[string]any
		setUp     func(w *world)
		held      bool
		none      bool
		why       string
		removable bool
	}{
		{name: "this host's", states: map[string]any{"host": testHost, "vm_state": "active"}, none: true},
		{name: "deleted", states: map[string]any{"deleted": true}, why: "deleted", removable: true},
		{name: "deleted on another host", states: map[string]any{"deleted": true, "host": "other"}, why: "deleted", removable: true},
		{name: "deleted, but its guest runs", states: map[string]any{"deleted": true}, held: true, why: "deleted; somebody else uses its links"},
		{name: "another host's", states: map[string]any{"host": "other"}, why: "nova has it on host other"},
		{name: "on no host", states: map[string]any{"host": nil}, why: "nova has it on no host; links that no record has stay"},
		{name: "unknown to nova", setUp: func(w *world) { w.nova.RemoveInstance(uuid) }, why: "nova does not know it"},
		{
			name: "deleted, to be logged only", states: map[string]any{"deleted": true},
			setUp: func(w *world) { w.Manager.opts.RunningDeletedAction = "log" }, why: "deleted; running_deleted_instance_action is log",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.buildArgs(nil)
			w.nova.Update(uuid, c.states)
			if c.setUp != nil {
				c.setUp(w)
			}
			links := []vif.Marked{loosePort, looseDevice}
			has := []string{"Open vSwitch port tap1", "device tap1"}
			if c.held {
				links[1], has[1] = heldDevice, "device tap1 (in use)"
			}
			w.plugger.lose(links...)
			for _, dry := range []bool{true, false} {
				found, err := w.Leftovers(t.Context(), dry)
				require.NoError(t, err)
				removed := c.removable && !dry
				if c.none {
					require.Empty(t, found)
				} else {
					require.Equal(t, []Leftover{{Instance: uuid, Has: has, Why: c.why, Removable: c.removable, Removed: removed}}, found)
				}
				if removed {
					require.Empty(t, w.plugger.links())
				} else {
					require.Equal(t, links, w.plugger.links())
				}
			}
			require.NotContains(t, w.driver.Calls(), "Destroy "+uuid, "of the rest of the host nothing is this agent's")
		})
	}
}

// TestLooseLinksOfARecord: a port that a record has is told as that, and its links are not loose.
func TestLooseLinksOfARecord(t *testing.T) {
	t.Parallel()
	w := built(t)
	loose, err := w.looseLinks(t.Context())
	require.NoError(t, err)
	require.Empty(t, loose)
	w.plugger.lose(looseDevice)
	loose, err = w.looseLinks(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string][]vif.Marked{uuid: {looseDevice}}, loose, "a device of a port that the record does not have")
}

// damaged is a deleted instance whose record cannot be read and whose guest has its link.
func damaged(t *testing.T) *world {
	t.Helper()
	w := built(t)
	require.NoError(t, state.Put(w.DB, recordBucket, uuid, "damaged"))
	w.nova.Update(uuid, map[string]any{"deleted": true})
	w.plugger.lose(heldDevice)
	w.trail.clear()
	return w
}

// looksTwice waits until a removal waits for a guest to let go: it has looked twice at least, after the list of all.
func (w *world) looksTwice() {
	w.t.Helper()
	eventually(w.t, "the wait for the guest to let go", func() bool {
		looks := slices.DeleteFunc(w.trail.all(), func(line string) bool { return line != "find links" })
		return len(looks) >= 3
	})
}

// collect removes leftovers apart from the test.
func (w *world) collect(ctx context.Context) <-chan []Leftover {
	done := make(chan []Leftover, 1)
	go func() {
		found, err := w.Leftovers(ctx, false)
		if err != nil {
			w.t.Error(err)
		}
		done <- found
	}()
	return done
}

// TestLooseLinksOfAGuest: the links of a guest of this agent's go after it, when it has let go of them.
func TestLooseLinksOfAGuest(t *testing.T) {
	t.Parallel()
	w := damaged(t)
	found, err := w.Leftovers(t.Context(), true)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Subset(t, found[0].Has, []string{"damaged record", "root disk", "device tap1 (in use)"})
	require.Equal(t, []any{"deleted", true}, []any{found[0].Why, found[0].Removable})
	w.trail.clear()

	done := w.collect(t.Context())
	w.looksTwice()
	w.plugger.lose(looseDevice)
	found = <-done
	require.Len(t, found, 1)
	require.NoError(t, found[0].Err)
	require.True(t, found[0].Removed)
	require.Empty(t, w.plugger.links())
	found, err = w.Leftovers(t.Context(), false)
	require.NoError(t, err)
	require.Empty(t, found)
}

// TestLooseLinksStayInUse: links that nobody lets go of stay, and that is told.
func TestLooseLinksStayInUse(t *testing.T) {
	t.Parallel()
	w := damaged(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := w.collect(ctx)
	w.looksTwice()
	cancel()
	found := <-done
	require.Len(t, found, 1)
	require.ErrorIs(t, found[0].Err, vif.ErrInUse)
	require.ErrorContains(t, found[0].Err, "device tap1")
	require.False(t, found[0].Removed)
	require.Equal(t, []vif.Marked{heldDevice}, w.plugger.links())
}

// TestLooseLinksFail: a host whose links cannot be listed is not told to be clean, and what could not be removed is tried again.
func TestLooseLinksFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.buildArgs(nil)
	w.nova.Update(uuid, map[string]any{"deleted": true})
	w.plugger.lose(loosePort, looseDevice)
	w.trail.fail("find", errBoom)
	_, err := w.Leftovers(t.Context(), false)
	require.ErrorIs(t, err, errBoom)

	w.trail.fail("remove link", errBoom)
	found, err := w.Leftovers(t.Context(), false)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.ErrorIs(t, found[0].Err, errBoom)
	require.False(t, found[0].Removed)
	require.Equal(t, []vif.Marked{loosePort}, w.plugger.links(), "one that fails keeps no other")
	found, err = w.Leftovers(t.Context(), false)
	require.NoError(t, err)
	require.True(t, found[0].Removed)
	require.Empty(t, w.plugger.links())

	w.plugger.lose(looseDevice)
	w.Plugger = nowhere.Plugger{}
	found, err = w.Leftovers(t.Context(), false)
	require.NoError(t, err)
	require.Empty(t, found, "a host of the fake driver has no links")
}

// TestStartLooksForNoLooseLinks: neither a start nor a periodic task looks through all links of the machine.
func TestStartLooksForNoLooseLinks(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.nova.Update(uuid, map[string]any{"deleted": true})
	w.plugger.lose(looseDevice)
	w.restarted()
	w.start()
	require.NoError(t, w.reapDeleted(t.Context()))
	require.False(t, w.trail.has("find links"))
	require.Equal(t, []vif.Marked{looseDevice}, w.plugger.links())
}
