//go:build functional

package functional

import (
	"context"
	"net/http"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/host"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// forceDown tells nova that a host is down, or is not any more.
func forceDown(t *testing.T, hostname string, down bool) {
	t.Helper()
	// Not the test's context: this is a clean-up, too.
	ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
	defer cancel()
	services, err := shared.Admin.ComputeServices(ctx, "nova-compute")
	require.NoError(t, err)
	for _, s := range services {
		if s.Host == hostname {
			require.NoError(t, shared.Admin.Do(ctx, http.MethodPut, cloud.Compute, "/os-services/"+s.ID, map[string]bool{"forced_down": down}, nil))
		}
	}
}

// TestEvacuate takes a server with a port and an ephemeral disk from a host that is down, and looks at what that does when it comes back. Both
// hosts of a lab share the kernel's links, and a port's have the same names on either: so the source comes back in a network namespace, with
// the port's links in it. Open vSwitch's database is one for both: there the server has no port.
func TestEvacuate(t *testing.T) {
	p := twoHosts(t)
	withPort := shared.Plane.Net == controlplane.LinuxBridge
	want := cloud.NewServer{Flavor: p.roomy}
	if !withPort {
		want.Networks = "none"
	}
	server := p.boot(want)
	p.sh(server.ID, "echo lost > /lost; echo lost > /mnt/lost")
	evacuated := []string{server.ID}
	if shared.Plane.Release.EvacuatesStopped {
		evacuated = append(evacuated, p.boot(cloud.NewServer{Networks: "none"}).ID)
	}

	kill(t, p.here)
	forceDown(t, p.here.Host, true)
	t.Cleanup(func() { // the tests behind this one need the host, whatever becomes of it
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
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
	links := func() []string { return nil }
	if withPort {
		links = setAside(t, p.here, server)
	}
	ctx := within(t, moveTime)
	began := time.Now()
	require.NoError(t, p.here.Admin.Action(ctx, server.ID, "evacuate", map[string]any{}, nil))
	var there cloud.Server
	require.NoError(t, cloud.Poll(ctx, 200*time.Millisecond, "the server to be on the other host", func() (bool, error) {
		now, err := p.here.Admin.Server(ctx, server.ID)
		there = now
		return now.Host == p.there.Host && now.Status == "ACTIVE" && now.TaskState == "", err
	}))
	t.Logf("evacuated: %.1f s", time.Since(began).Seconds())
	onlyNew := func() {
		t.Helper()
		require.Equal(t, "no", p.sh(server.ID, "test -e /lost -o -e /mnt/lost && echo yes || echo no"), "no disk is shared")
		require.InDelta(t, 1, sizeOn(t, p.there, server.ID, "/mnt"), 0.07)
		if !withPort {
			return
		}
		require.Equal(t, server.IP(), there.IP())
		answers(t, there)
		ports, err := shared.Admin.Ports(ctx, "device_id="+server.ID)
		require.NoError(t, err)
		require.Len(t, ports, 1)
		require.Equal(t, p.there.Host, ports[0].HostID)
		require.Equal(t, "ACTIVE", ports[0].Status)
	}
	onlyNew()
	for _, other := range evacuated[1:] {
		p.evacuateStopped(other)
	}
	m := p.migrations(server.ID)[0]
	require.Equal(t, migration{m.UUID, "done", "evacuation", p.here.Host, p.there.Host}, m)
	require.ElementsMatch(t, []string{p.here.Host, p.there.Host}, p.held(server.ID), "the source's part goes when it is back")

	restart(t, p.here)
	eventually(t, 30*time.Second, "the source to clear away", func(context.Context) (bool, error) {
		return !slices.ContainsFunc(evacuated, func(id string) bool { return p.migrations(id)[0].Status != "completed" }), nil
	})
	forceDown(t, p.here.Host, false) // nova refuses that before
	require.Empty(t, leftovers(t, p.here, server.ID))
	require.Empty(t, links(), "the port's links on the source")
	onlyNew()
	require.Equal(t, []string{p.there.Host}, p.held(server.ID))
	require.Equal(t, []string{"compute_rebuild_instance=Success@" + p.there.Host}, p.events(server.ID, "evacuate"))
	p.act(server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	onlyNew()
	remove(t, server.ID)
	require.Empty(t, leftovers(t, p.there, server.ID))
	require.Empty(t, p.held(server.ID))
}

// setAside gives a host that is down a network namespace of its own until the test ends, with its server's links on a bridge. The returned
// function lists those that are left of the port's.
func setAside(t *testing.T, l *lab.Lab, server cloud.Server) (left func() []string) {
	t.Helper()
	ctx := within(t, time.Minute)
	ports, err := l.Admin.Ports(ctx, "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	tap, bridge := "tap"+ports[0].ID[:11], "brq"+ports[0].NetworkID[:11]
	aside, err := host.NewAside(t.Context(), "aside-"+l.Host, []int{5000, 5672, 8778, 9292, 9696})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, l.Agent.Signal(ctx, syscall.SIGTERM))
		l.Agent.Within = nil
		require.NoError(t, aside.Close(ctx))
	})
	l.Agent.Within = aside.Within
	_ = exec.CommandContext(ctx, "ip", "link", "del", tap).Run() // it may have gone with the guest
	require.NoError(t, aside.Run(ctx, "link", "add", bridge, "type", "bridge"))
	require.NoError(t, aside.Run(ctx, "link", "add", tap, "type", "veth", "peer", "name", "guest"))
	require.NoError(t, aside.Run(ctx, "link", "set", tap, "up", "master", bridge))
	return func() []string {
		t.Helper()
		links, err := aside.Links()
		require.NoError(t, err)
		return slices.DeleteFunc(links, func(name string) bool { return name == "lo" || name == bridge })
	}
}

// evacuateStopped evacuates a server at the microversion since which it is left off, and starts it.
func (p *pairOf) evacuateStopped(id string) {
	p.t.Helper()
	ctx := within(p.t, moveTime)
	body := map[string]any{"evacuate": map[string]any{}}
	require.NoError(p.t, p.here.Admin.DoAt(ctx, "compute 2.95", http.MethodPost, cloud.Compute, "/servers/"+id+"/action", body, nil))
	require.NoError(p.t, cloud.Poll(ctx, 200*time.Millisecond, "the server to be off on the other host", func() (bool, error) {
		now, err := p.here.Admin.Server(ctx, id)
		return now.Host == p.there.Host && now.Status == "SHUTOFF" && now.TaskState == "", err
	}))
	p.act(id, "os-start", nil, "ACTIVE")
	require.Equal(p.t, "yes", p.sh(id, "echo yes"))
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
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
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
