//go:build functional

package functional

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// atOnce makes the agent look at once for what is over, and again every two seconds for guests that Nova has deleted.
const atOnce = `[DEFAULT]
periodic_fuzzy_delay = 0
update_resources_interval = 2
running_deleted_instance_poll_interval = 2
reclaim_instance_interval = 1
`

// softDelete deletes a server so that it can be restored.
func softDelete(t *testing.T, id string) cloud.Server {
	t.Helper()
	require.NoError(t, shared.Plane.SoftDelete(within(t, time.Minute), id))
	server := statusIn(t, 30*time.Second, id, "SOFT_DELETED")
	require.Equal(t, 4, server.PowerState)
	requireAction(t, id, "delete", "compute_soft_delete_instance")
	return server
}

// TestSoftDelete: a server that was deleted so is off and keeps all it has, comes back or goes for good, and is reclaimed when its time is over.
func TestSoftDelete(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	inside(t, server.ID, "sh", "-c", "echo kept > /kept; sync")
	softDelete(t, server.ID)
	_, err := shared.Agent.Exec(within(t, 10*time.Second), server.ID, "true")
	require.Error(t, err, "the guest is off")
	ports, err := shared.Admin.Ports(within(t, 10*time.Second), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	require.Equal(t, shared.Host, ports[0].HostID)
	provider, _, err := shared.Admin.Provider(within(t, 10*time.Second), shared.Host)
	require.NoError(t, err)
	held, err := shared.Admin.Allocations(within(t, 10*time.Second), provider)
	require.NoError(t, err)
	require.Contains(t, held, server.ID)

	act(t, server.ID, "restore", nil, "ACTIVE")
	requireAction(t, server.ID, "restore", "compute_restore_instance")
	answers(t, server)
	require.Equal(t, "kept", inside(t, server.ID, "cat", "/kept"))

	act(t, server.ID, "pause", nil, "PAUSED")
	softDelete(t, server.ID)
	require.NoError(t, shared.Admin.Action(within(t, time.Minute), server.ID, "forceDelete", nil, nil))
	require.NoError(t, shared.Admin.WaitGone(within(t, time.Minute), server.ID))
	noAllocations(t, server.ID)

	old := boot(t, cloud.NewServer{Name: "old", Networks: "none"})
	softDelete(t, old.ID)
	withOptions(t, shared, atOnce)
	require.NoError(t, shared.Admin.WaitGone(within(t, 30*time.Second), old.ID))
	noAllocations(t, old.ID)
	nothingLeft(t, before)
}

// TestZombie: the API deletes the server of a host that it holds to be down by itself. The host's agent ends the guest when it finds out.
func TestZombie(t *testing.T) {
	withOptions(t, shared, atOnce)
	before := snapshot(t)
	server := boot(t, cloud.NewServer{})
	forced := boot(t, cloud.NewServer{Name: "forced", Networks: "none"})
	require.NoError(t, shared.Admin.Action(within(t, time.Minute), forced.ID, "forceDelete", nil, nil)) // in any state
	require.NoError(t, shared.Admin.WaitGone(within(t, time.Minute), forced.ID))

	forceDown(t, shared.Host, true)
	t.Cleanup(func() { forceDown(t, shared.Host, false) })
	require.Equal(t, "down", serviceState(t))
	remove(t, server.ID)
	logged := ""
	eventually(t, 30*time.Second, "the agent to find it", func(context.Context) (bool, error) {
		var err error
		logged, _, err = shared.Agent.Log(0)
		return containsAll(logged, "found a deleted instance on this host", server.ID), err
	})
	nothingLeft(t, before)
	noAllocations(t, server.ID)
	forceDown(t, shared.Host, false)
	require.Equal(t, "up", serviceState(t))
}
