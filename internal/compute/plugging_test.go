package compute

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPortWithoutEvent: what Neutron's agent reported was lost on its way to nova, or within Neutron.
func TestPortWithoutEvent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		upAfter int64 // the call of the plugger after which Neutron says that the port is up
		calls   []string
	}{
		"the port is up":      {1, []string{"plug port-1"}},
		"the port stays down": {3, []string{"plug port-1", "unplug port-1", "plug port-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.VIFPluggingTimeout, o.VIFPluggingIsFatal = pluggingTimeout, true })
			var calls atomic.Int64
			w.plugger.crash = func() {
				if calls.Add(1) != c.upAfter {
					return
				}
				w.neutron.mu.Lock()
				defer w.neutron.mu.Unlock()
				w.neutron.ports["port-1"]["status"] = "ACTIVE"
			}
			_, err := w.call(user(t), "build_and_run_instance", w.buildArgs(nil))
			require.NoError(t, err)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			require.Equal(t, []string{"port-1"}, w.plugger.plugged())
			require.Subset(t, w.trail.all(), c.calls)
			require.EqualValues(t, len(c.calls), calls.Load())
		})
	}
}
