//go:build functional

package functional

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/host"
)

// forceDown tells nova that a host is down, or is not any more.
func forceDown(t *testing.T, hostname string, down bool) {
	t.Helper()
	// Not the test's context: this is a clean-up, too.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	services, err := shared.Admin.ComputeServices(ctx, "nova-compute")
	require.NoError(t, err)
	for _, s := range services {
		if s.Host == hostname {
			require.NoError(t, shared.Admin.Do(ctx, http.MethodPut, cloud.Compute, "/os-services/"+s.ID, map[string]bool{"forced_down": down}, nil))
		}
	}
}

// TestEvacuate takes a server from a host that is down, and looks at what that does when it comes back. It has no port: both hosts of a lab
// share the kernel's links and ebtables, and the L2 agent of the second host waits for minutes when the first one's device vanishes.
func TestEvacuate(t *testing.T) {
	p := twoHosts(t)
	server := p.boot(cloud.NewServer{Networks: "none"})
	p.sh(server.ID, "echo lost > /lost")

	kill(t, p.here)
	forceDown(t, p.here.Host, true)
	t.Cleanup(func() { // the tests behind this one need the host, whatever becomes of it
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if p.here.Agent.PID() == 0 {
			require.NoError(t, p.here.Agent.Start())
			require.NoError(t, p.here.Agent.WaitServing(ctx))
		}
		forceDown(t, p.here.Host, false)
		require.NoError(t, p.here.Plane.WaitCompute(ctx, p.here.Host))
	})
	// The machine is down: its guests are, too.
	require.NoError(t, host.Purge(within(t, time.Minute), p.here.Agent.Dir))
	ctx := within(t, moveTime)
	require.NoError(t, p.here.Admin.Action(ctx, server.ID, "evacuate", map[string]any{}, nil))
	require.NoError(t, cloud.Poll(ctx, 200*time.Millisecond, "the server to be on the other host", func() (bool, error) {
		now, err := p.here.Admin.Server(ctx, server.ID)
		return now.Host == p.there.Host && now.Status == "ACTIVE" && now.TaskState == "", err
	}))
	require.Equal(t, "no", p.sh(server.ID, "test -e /lost && echo yes || echo no"), "no disk is shared")
	m := p.migrations(server.ID)[0]
	require.Equal(t, migration{m.UUID, "done", "evacuation", p.here.Host, p.there.Host}, m)
	require.ElementsMatch(t, []string{p.here.Host, p.there.Host}, p.held(server.ID), "the source's part goes when it is back")

	restart(t, p.here)
	eventually(t, 30*time.Second, "the source to clear away", func(context.Context) (bool, error) {
		return p.migrations(server.ID)[0].Status == "completed", nil
	})
	forceDown(t, p.here.Host, false) // nova refuses that before
	require.Empty(t, leftovers(t, p.here, server.ID))
	require.Equal(t, []string{p.there.Host}, p.held(server.ID))
	require.Equal(t, []string{"compute_rebuild_instance=Success@" + p.there.Host}, p.events(server.ID, "evacuate"))
	p.act(server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	remove(t, server.ID)
	require.Empty(t, leftovers(t, p.there, server.ID))
	require.Empty(t, p.held(server.ID))
}

// TestRescheduledBuild fails a build on one host, and sees it done by the other.
func TestRescheduledBuild(t *testing.T) {
	p := twoHosts(t, "[lxc]", "root_disk_max_gb = 1")
	p.boot(cloud.NewServer{Name: "moves-ballast", Flavor: p.bigger}) // so that the scheduler prefers the other host, which takes no disk of 2 GB
	_, from, err := p.there.Agent.Log(0)
	require.NoError(t, err)
	id, err := p.here.Admin.CreateServer(within(t, time.Minute), cloud.NewServer{
		Name: "moves-rescheduled", Image: shared.Busybox, Flavor: p.bigger, Networks: cloud.OnNetwork(shared.Network),
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, shared.Admin.DeleteServer(ctx, id))
		require.NoError(t, shared.Admin.WaitGone(ctx, id))
	})
	server, err := p.here.Admin.WaitStatus(within(t, moveTime), id, "ACTIVE")
	require.NoError(t, err)
	require.Equal(t, p.here.Host, server.Host)
	text, _, err := p.there.Agent.Log(from)
	require.NoError(t, err)
	require.Contains(t, text, "build rescheduled to another host")
	require.Empty(t, leftovers(t, p.there, id))
	require.Equal(t, []string{p.here.Host}, p.held(id))
	answers(t, server)
}
