//go:build functional

package functional

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestShelve: with shelved_offload_time at its default the server leaves the host at once, and comes back with its
// data and its address. Its ephemeral disk is a new one then.
func TestShelve(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1, Ephemeral: 1}, nil)})
	answers(t, server)
	inside(t, server.ID, "sh", "-c", "echo mine > /mark; echo lost > /mnt/mark")
	ports, err := shared.Admin.Ports(within(t, 20*time.Second), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)

	stop := follow(t, server.ID)
	act(t, server.ID, "shelve", nil, "SHELVED_OFFLOADED")
	states := stop()
	sawTask(t, states, "shelving")
	require.Equal(t, []string{"compute_shelve_instance Success"}, actionEvents(t, server.ID, "shelve"))
	shelved, err := shared.Admin.Server(within(t, 20*time.Second), server.ID)
	require.NoError(t, err)
	require.Empty(t, shelved.Host)
	noAllocations(t, server.ID)
	asBefore(t, before)
	unbound, err := shared.Admin.Ports(within(t, 20*time.Second), "device_id="+server.ID)
	require.NoError(t, err)
	require.Equal(t, ports[0].ID, unbound[0].ID, "the port is the server's still")
	require.Empty(t, unbound[0].HostID)
	kept := images(t, server.ID)
	require.Len(t, kept, 1)
	require.Equal(t, "active", kept[0].Status)

	stop = follow(t, server.ID)
	unshelveHere(t, server.ID)
	stop()
	require.Contains(t, actionEvents(t, server.ID, "unshelve"), "compute_unshelve_instance Success")
	back, err := shared.Admin.Server(within(t, 20*time.Second), server.ID)
	require.NoError(t, err)
	require.Equal(t, shared.Host, back.Host)
	require.Equal(t, server.IP(), back.IP())
	answers(t, back)
	require.Equal(t, "mine", inside(t, server.ID, "cat", "/mark"))
	require.InDelta(t, 1, sizeInside(t, server.ID, "/mnt"), 0.07)
	require.Equal(t, "new", inside(t, server.ID, "sh", "-c", "test -e /mnt/mark || echo new"))
	require.Empty(t, images(t, server.ID), "the image is of no use any more")
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	require.Equal(t, "mine", inside(t, server.ID, "cat", "/mark"))
	remove(t, server.ID)
	asBefore(t, before)
}

// TestDeleteShelved: what is shelved can be deleted, here and offloaded.
func TestDeleteShelved(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Flavor: shared.Small})
	act(t, server.ID, "shelve", nil, "SHELVED_OFFLOADED")
	kept := images(t, server.ID)
	require.Len(t, kept, 1)
	remove(t, server.ID)
	eventually(t, 30*time.Second, "image to go with its server", func(ctx context.Context) (bool, error) {
		_, err := readImage(ctx, kept[0].ID)
		if cloud.IsStatus(err, http.StatusNotFound) {
			return true, nil
		}
		return false, err
	})
	asBefore(t, before)
}

// unshelveHere unshelves a server on this host: there may be others, and a scheduler that likes them better.
func unshelveHere(t *testing.T, id string) {
	t.Helper()
	ctx := within(t, time.Minute)
	err := shared.Admin.DoAt(ctx, "compute 2.91", http.MethodPost, cloud.Compute, "/servers/"+id+"/action",
		map[string]any{"unshelve": map[string]any{"availability_zone": nil, "host": shared.Host}}, nil)
	require.NoError(t, err)
	_, err = shared.Admin.WaitStatus(ctx, id, "ACTIVE")
	require.NoError(t, err)
}
