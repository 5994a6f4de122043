package stopwatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOwnTimeIsWhatNoWaitCovers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, watch := With(t.Context())
		time.Sleep(10 * time.Millisecond)
		endNeutron := Wait(ctx, Neutron)
		time.Sleep(20 * time.Millisecond)
		endGlance := Wait(ctx, Glance)
		time.Sleep(20 * time.Millisecond)
		endNeutron()
		time.Sleep(5 * time.Millisecond)
		endGlance()
		time.Sleep(7 * time.Millisecond)

		want := map[string]any{
			"elapsed_ms": int64(62), "own_ms": int64(17),
			"wait_neutron_ms": int64(40), "wait_glance_ms": int64(25),
		}
		if diff := cmp.Diff(want, watch.Fields()); diff != "" {
			t.Errorf("fields differ (-want +got):\n%s", diff)
		}
	})
}

func TestWaitWithoutWatch(t *testing.T) {
	t.Parallel()
	Wait(t.Context(), Conductor)()
}
