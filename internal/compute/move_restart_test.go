package compute

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
)

// TestOldResizesAreConfirmed: by resize_confirm_window, and those that nobody can confirm any more are ended.
func TestOldResizesAreConfirmed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		states map[string]any // nil: the instance is gone
		status string
		casts  int
	}{
		{"resized", map[string]any{"vm_state": "resized", "task_state": nil}, `"confirming"`, 1},
		{"reverting", map[string]any{"vm_state": "resized", "task_state": "resize_reverting"}, `"finished"`, 0},
		{"being deleted", map[string]any{"vm_state": "resized", "task_state": "deleting"}, `"finished"`, 0},
		{"not stored yet", map[string]any{"vm_state": "active", "task_state": "resize_finish"}, `"finished"`, 0},
		{"active", map[string]any{"vm_state": "active", "task_state": nil}, `"error"`, 0},
		{"in error", map[string]any{"vm_state": "error", "task_state": nil}, `"error"`, 0},
		{"gone", nil, `"error"`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t, func(o *Options) { o.ResizeConfirmWindow = time.Second })
			w.nova.AddMigration(novatest.Fields{
				"id": novatest.Raw(8), "uuid": novatest.Raw(migrationUUID), "instance_uuid": novatest.Raw(uuid), "status": novatest.Raw("finished"),
				"source_compute": novatest.Raw("other"), "dest_compute": novatest.Raw(testHost), "migration_type": novatest.Raw("resize"),
			})
			if c.states == nil {
				w.nova.RemoveInstance(uuid)
			} else {
				w.nova.Update(uuid, c.states)
			}
			require.NoError(t, w.confirmOldResizes(t.Context()))
			require.Equal(t, c.status, w.status())
			require.Len(t, w.nova.Casts("confirm_resize"), c.casts)
			w.nova.ClearLog()
			w.Manager.opts.ResizeConfirmWindow = 0
			require.NoError(t, w.confirmOldResizes(t.Context()))
			require.Empty(t, w.nova.Log(), "it is off")
		})
	}
}
