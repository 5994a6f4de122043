package compute

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/vif"
)

// buildWithSpecs builds the captured server with extra specs.
func (w *world) buildWithSpecs(specs map[string]string, change map[string]any) {
	w.t.Helper()
	args := w.buildArgs(change)
	var inst map[string]any
	require.NoError(w.t, json.Unmarshal(args["instance"], &inst))
	flavor := inst["nova_object.data"].(map[string]any)["flavor"].(map[string]any)["nova_object.data"].(map[string]any)
	flavor["extra_specs"] = specs
	w.nova.Update(uuid, map[string]any{"flavor": inst["nova_object.data"].(map[string]any)["flavor"]})
	raw, err := json.Marshal(inst)
	require.NoError(w.t, err)
	args["instance"] = raw
	w.plugEvents("completed")
	_, err = w.call(user(w.t), "build_and_run_instance", args)
	require.NoError(w.t, err)
	require.Equal(w.t, "active/-/"+testHost, w.nova.States(uuid))
}

// TestBandwidth: a port is plugged with the flavor's limits at the build, when attached and at every start; one
// that Neutron limits by a policy never.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.neutron.addPort("own")
	w.neutron.ports["own"]["qos_policy_id"] = "gold"
	w.buildWithSpecs(map[string]string{"quota:vif_inbound_average": "1000", "quota:vif_inbound_peak": "2000", "quota:vif_outbound_average": "500", "quota:vif_outbound_burst": "64"},
		map[string]any{"requested_networks": requested(map[string]any{"network_id": networkID}, map[string]any{"port_id": "own"})})
	want := vif.Bandwidth{In: vif.Rate{Average: 1000, Peak: 2000}, Out: vif.Rate{Average: 500, Burst: 64}}
	check := func() {
		t.Helper()
		w.plugger.mu.Lock()
		defer w.plugger.mu.Unlock()
		for id, v := range w.plugger.ports {
			if id == "own" {
				require.True(t, v.Bandwidth.IsZero(), id)
				continue
			}
			require.Equal(t, want, v.Bandwidth, id)
		}
	}
	check()
	_, err := w.operate("attach_interface", "", attachArgs(nil))
	require.NoError(t, err)
	require.Len(t, w.plugger.plugged(), 3)
	check()
	_, err = w.operate("reboot_instance", object.TaskStateRebootingHard, map[string]any{"reboot_type": "HARD"})
	require.NoError(t, err)
	check()
	w.restarted()
	require.NoError(t, w.InitHost(t.Context()))
	w.drain()
	check()
}
