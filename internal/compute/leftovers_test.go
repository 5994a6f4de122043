package compute

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestTellLeftovers: what an operator is told of an instance that is not this host's, and what goes when it is asked for.
func TestTellLeftovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		states    map[string]any
		setUp     func(w *world)
		none      bool
		why       string
		removable bool
		fault     string
	}{
		{name: "this host's", none: true},
		{name: "deleted", states: map[string]any{"deleted": true}, why: "deleted", removable: true},
		{name: "failed build", states: map[string]any{"vm_state": "error", "host": nil}, why: "nova has it on no host", removable: true},
		{name: "moved", states: map[string]any{"host": "other"}, why: "nova has it on host other"},
		{name: "unknown to nova", setUp: func(w *world) { w.nova.RemoveInstance(uuid) }, why: "nova does not know it"},
		{
			name: "deleted, to be logged only", states: map[string]any{"deleted": true},
			setUp: func(w *world) { w.Manager.opts.RunningDeletedAction = "log" }, why: "deleted; running_deleted_instance_action is log",
		},
		{
			name: "deleted just now", states: map[string]any{"deleted": true, "deleted_at": time.Now().UTC().Format(time.RFC3339)},
			setUp: func(w *world) { w.Manager.opts.RunningDeletedTimeout = time.Hour }, why: "deleted; running_deleted_instance_timeout is not over",
		},
		{
			name: "conductor fails", states: map[string]any{"deleted": true},
			setUp: func(w *world) { w.nova.Fail("Instance.get_by_uuid", errBoom) }, fault: errBoom.Error(),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			w.nova.Update(uuid, c.states)
			for _, dry := range []bool{true, false} {
				if c.setUp != nil {
					c.setUp(w)
				}
				found, err := w.Leftovers(t.Context(), dry)
				require.NoError(t, err)
				if c.none {
					require.Empty(t, found)
					continue
				}
				require.Len(t, found, 1)
				l := found[0]
				require.Equal(t, uuid, l.Instance)
				for _, what := range []string{"record", "port port-1", "root disk", "id range", "use of an image"} {
					require.Contains(t, l.Has, what)
				}
				if c.fault != "" {
					require.ErrorContains(t, l.Err, c.fault)
				} else {
					require.NoError(t, l.Err)
				}
				require.Equal(t, []any{c.why, c.removable, c.removable && !dry}, []any{l.Why, l.Removable, l.Removed})
				_, here := w.driver.Instance(uuid)
				require.Equal(t, !l.Removed, here)
			}
			if c.removable {
				found, err := w.Leftovers(t.Context(), false)
				require.NoError(t, err)
				require.Empty(t, found, "nothing is left, the uses of images included")
				require.Empty(t, w.plugger.plugged())
			}
		})
	}
}

// TestLeftoverNotRemoved: what cannot be removed is told, and its record stays for another try.
func TestLeftoverNotRemoved(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.nova.Update(uuid, map[string]any{"deleted": true})
	w.driver.Fail("Destroy", "", errBoom)
	found, err := w.Leftovers(t.Context(), false)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.ErrorIs(t, found[0].Err, errBoom)
	require.False(t, found[0].Removed)
	_, ok, err := w.record(uuid)
	require.NoError(t, err)
	require.True(t, ok)
}
