//go:build functional

package functional

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/host"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// fakeHost is a further host of the control plane, with an agent that has the fake driver and runs as nobody.
func fakeHost(t *testing.T) *lab.Lab {
	t.Helper()
	name := "fake"
	if shared.Host != shared.Plane.Host && len(shared.Host) < 7 {
		name = shared.Host + "f"
	}
	ctx := within(t, 2*time.Minute)
	l, err := shared.Fake(ctx, name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, l.StopAgent(ctx))
		require.NoError(t, l.Plane.RemoveHost(ctx, name))
	})
	require.NoError(t, err)
	require.NoError(t, l.StartAgent(ctx))
	require.NoError(t, l.Agent.WaitServing(ctx))
	return l
}

// TestFakeDriver takes a server through its life on a host where nothing is started, and sees that nothing was.
func TestFakeDriver(t *testing.T) {
	l := fakeHost(t)
	ctx := within(t, 2*time.Minute)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.Agent.PID()))
	require.NoError(t, err)
	require.Regexp(t, `(?m)^Uid:\t65534\t65534\t65534\t65534$`, string(status))
	require.Regexp(t, `(?m)^CapEff:\t0+$`, string(status))
	text, _, err := l.Agent.Log(0)
	require.NoError(t, err)
	require.Contains(t, text, "this is a fake compute host")
	hypervisors, err := l.Admin.Hypervisors(ctx)
	require.NoError(t, err)
	at := slices.IndexFunc(hypervisors, func(h cloud.Hypervisor) bool { return h.Hostname == l.Host })
	require.GreaterOrEqual(t, at, 0)
	require.Equal(t, "fake", hypervisors[at].Type)
	require.Equal(t, []int{1000, 800_000, 600_000}, []int{hypervisors[at].VCPUs, hypervisors[at].MemoryMB, hypervisors[at].LocalGB})

	before, err := host.Take(ctx, l.Agent.StateDir(), nil)
	require.NoError(t, err)
	began := time.Now()
	id, err := l.Admin.CreateServer(ctx, cloud.NewServer{
		Name: "fake-driver", Image: l.Busybox, Flavor: l.Nano, Networks: cloud.OnNetwork(l.Network), AvailabilityZone: "nova:" + l.Host,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, l.Admin.DeleteServer(ctx, id))
		require.NoError(t, l.Admin.WaitGone(ctx, id))
	})
	server, err := l.Admin.WaitStatus(ctx, id, "ACTIVE")
	require.NoError(t, err)
	require.Equal(t, l.Host, server.Host)
	require.NotEmpty(t, server.IP())
	t.Logf("ACTIVE after %.1f s", time.Since(began).Seconds())
	for _, step := range []struct {
		action string
		args   any
		status string
	}{
		{"pause", nil, "PAUSED"},
		{"unpause", nil, "ACTIVE"},
		{"reboot", map[string]string{"type": "HARD"}, "ACTIVE"},
		{"rebuild", map[string]string{"imageRef": l.Busybox}, "ACTIVE"},
		{"os-stop", nil, "SHUTOFF"},
		{"os-start", nil, "ACTIVE"},
	} {
		act(t, id, step.action, step.args, step.status)
	}
	console, err := l.Admin.ConsoleLog(ctx, id, 10)
	require.NoError(t, err)
	require.Contains(t, console, "is started, and nothing runs")
	untouched(t, l, before, id)

	// Its guests outlive the agent, too.
	require.NoError(t, l.Agent.Signal(ctx, syscall.SIGTERM))
	restart(t, l)
	_, err = l.Admin.WaitStatus(ctx, id, "ACTIVE")
	require.NoError(t, err)
	resident, err := l.Agent.ResidentKB()
	require.NoError(t, err)
	t.Logf("resident memory: %d KiB", resident)

	remove(t, id)
	untouched(t, l, before, id)
	provider, _, err := l.Admin.Provider(ctx, l.Host)
	require.NoError(t, err)
	allocations, err := l.Admin.Allocations(ctx, provider)
	require.NoError(t, err)
	require.Empty(t, allocations)
}

// untouched requires that the machine has nothing of a host's servers. Links come and go with the servers of others: those of a port of
// this one's are looked for by name.
func untouched(t *testing.T, l *lab.Lab, before host.Snapshot, id string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	now, err := host.Take(ctx, l.Agent.StateDir(), nil)
	require.NoError(t, err)
	changes := slices.DeleteFunc(now.Since(before), func(change string) bool {
		return strings.HasPrefix(change, "link ") || strings.HasPrefix(change, "netns ")
	})
	require.Empty(t, changes)
	ports, err := l.Admin.Ports(ctx, "device_id="+id)
	require.NoError(t, err)
	for _, port := range ports {
		require.Equal(t, l.Host, port.HostID)
		for _, link := range now["link"] {
			require.NotContains(t, link, port.ID[:11])
		}
	}
}
