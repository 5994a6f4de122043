//go:build functional

package functional

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestPortThatIsNeverUp: Neutron never reports the port of a server that is built. What the configuration says decides whether the server
// runs without it.
func TestPortThatIsNeverUp(t *testing.T) {
	const patience = "\n[DEFAULT]\nvif_plugging_timeout = 3\nvif_plugging_is_fatal = "
	usual := shared.AgentOptions
	withOptions(t, shared, patience+"true\n")
	t.Run("fatal", func(t *testing.T) {
		port, _ := blockPort(t, "down-fatal")
		before := snapshot(t)
		id := create(t, cloud.NewServer{Networks: cloud.OnPort(port)})
		require.Contains(t, errored(t, id).Fault.Message, "port "+port+" was not reported up within vif_plugging_timeout (3s)")
		require.Empty(t, leftovers(t, shared, id))
		nothingLeft(t, before)
		noAllocations(t, id)
		ports, err := shared.Admin.Ports(within(t, 10*time.Second), "id="+port)
		require.NoError(t, err)
		require.Len(t, ports, 1, "the tenant's port stays")
		require.Empty(t, ports[0].HostID)
	})
	restartWith(t, shared, usual+patience+"false\n")
	t.Run("not fatal", func(t *testing.T) {
		port, _ := blockPort(t, "down-tolerated")
		began := time.Now()
		server := boot(t, cloud.NewServer{Networks: cloud.OnPort(port)})
		require.GreaterOrEqual(t, time.Since(began), 3*time.Second)
		require.Nil(t, server.Fault)
		require.Contains(t, inside(t, server.ID, "ls", "/sys/class/net"), "eth0")
		ports, err := shared.Admin.Ports(within(t, 10*time.Second), "id="+port)
		require.NoError(t, err)
		require.Len(t, ports, 1)
		require.NotEqual(t, "ACTIVE", ports[0].Status) // DOWN, or BUILD once Neutron's agent has seen it
	})
}
