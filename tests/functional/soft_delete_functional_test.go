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

// TestSoftDelete: servers that are deleted so are off and keep all they have. One comes back, one goes for good when its owner says so, and one
// when its time is over.
func TestSoftDelete(t *testing.T) {
	before := snapshot(t)
	back := boot(t, cloud.NewServer{Name: "back"})
	paused := boot(t, cloud.NewServer{Name: "paused", Networks: "none"})
	old := boot(t, cloud.NewServer{Name: "old", Networks: "none"})
	answers(t, back)
	inside(t, back.ID, "sh", "-c", "echo kept > /kept; sync")
	act(t, paused.ID, "pause", nil, "PAUSED")
	require.NoError(t, shared.Plane.SoftDelete(within(t, 2*time.Minute), back.ID, paused.ID, old.ID))
	provider, _, err := shared.Admin.Provider(within(t, 10*time.Second), shared.Host)
	require.NoError(t, err)
	for _, id := range []string{back.ID, paused.ID, old.ID} {
		require.Equal(t, 4, statusIn(t, 30*time.Second, id, "SOFT_DELETED").PowerState)
		requireAction(t, id, "delete", "compute_soft_delete_instance")
		_, err := shared.Agent.Exec(within(t, 10*time.Second), id, "true")
		require.Error(t, err, "the guest is off")
		held, err := shared.Admin.Allocations(within(t, 10*time.Second), provider)
		require.NoError(t, err)
		require.Contains(t, held, id)
	}
	ports, err := shared.Admin.Ports(within(t, 10*time.Second), "device_id="+back.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	require.Equal(t, shared.Host, ports[0].HostID)

	act(t, back.ID, "restore", nil, "ACTIVE")
	requireAction(t, back.ID, "restore", "compute_restore_instance")
	answers(t, back)
	require.Equal(t, "kept", inside(t, back.ID, "cat", "/kept"))
	require.NoError(t, shared.Admin.Action(within(t, time.Minute), paused.ID, "forceDelete", nil, nil))
	require.NoError(t, shared.Admin.WaitGone(within(t, time.Minute), paused.ID))
	withOptions(t, shared, atOnce)
	require.NoError(t, shared.Admin.WaitGone(within(t, time.Minute), old.ID))
	statusIn(t, 10*time.Second, back.ID, "ACTIVE")
	remove(t, back.ID)
	for _, id := range []string{back.ID, paused.ID, old.ID} {
		noAllocations(t, id)
	}
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
