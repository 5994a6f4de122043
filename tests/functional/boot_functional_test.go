//go:build functional

package functional

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestBootBusybox(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{})
	require.Equal(t, shared.Host, server.Host)
	require.Equal(t, "active", server.VMState)
	require.Equal(t, 1, server.PowerState)
	answers(t, server)
	require.Contains(t, httpGet(t, server), "busybox ok", "TCP reaches the guest")

	require.Equal(t, "0", inside(t, server.ID, "id", "-u"))
	require.Contains(t, inside(t, server.ID, "ip", "-4", "addr", "show", "eth0"), server.IP())
	mtu := inside(t, server.ID, "cat", "/sys/class/net/eth0/mtu")
	require.Equal(t, "1500", mtu)
	ids := inside(t, server.ID, "cat", "/proc/self/uid_map")
	require.NotEqual(t, "0", strings.Fields(ids)[1], "root of the guest is not root of the host: %s", ids)

	eventually(t, 10*time.Second, "the end of booting on the console", func(ctx context.Context) (bool, error) {
		log, err := shared.Admin.ConsoleLog(ctx, server.ID, 0)
		return strings.Contains(log, "busybox: ready"), err
	})
	remove(t, server.ID)
	noAllocations(t, server.ID)
	nothingLeft(t, before)
}

func TestBootDebian(t *testing.T) {
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Image: shared.Debian, Flavor: shared.Small})
	answers(t, server)
	require.Contains(t, inside(t, server.ID, "cat", "/etc/os-release"), "Debian GNU/Linux 12")
	require.Equal(t, "systemd", inside(t, server.ID, "cat", "/proc/1/comm"))
	eventually(t, 90*time.Second, "login prompt on the console", func(ctx context.Context) (bool, error) {
		log, err := shared.Admin.ConsoleLog(ctx, server.ID, 0)
		return strings.Contains(log, "login:"), err
	})
	last, err := shared.Admin.ConsoleLog(within(t, 10*time.Second), server.ID, 3)
	require.NoError(t, err)
	require.LessOrEqual(t, strings.Count(strings.TrimRight(last, "\n"), "\n"), 2, "three lines at most: %q", last)
	remove(t, server.ID)
	nothingLeft(t, before)
}

func TestBootWithoutNetwork(t *testing.T) {
	server := boot(t, cloud.NewServer{Networks: "none"})
	require.Empty(t, server.Addresses)
	links := inside(t, server.ID, "ls", "/sys/class/net")
	require.Equal(t, []string{"lo"}, strings.Fields(links), "a network namespace of its own")
}

func TestBootManyAtOnce(t *testing.T) {
	const count = 20
	before := snapshot(t)
	began := time.Now()
	name := "many"
	create(t, cloud.NewServer{Name: name, MinCount: count, MaxCount: count})
	ctx := within(t, 5*time.Minute)
	servers, err := shared.Admin.Servers(ctx, name+"-")
	require.NoError(t, err)
	require.Len(t, servers, count)
	for i, server := range servers {
		servers[i], err = shared.Admin.WaitStatus(ctx, server.ID, "ACTIVE")
		require.NoError(t, err)
	}
	t.Logf("%d servers ACTIVE after %.1f s", count, time.Since(began).Seconds())
	seen := map[string]bool{}
	for _, server := range servers {
		require.False(t, seen[server.IP()], "address %s twice", server.IP())
		seen[server.IP()] = true
		answers(t, server)
	}
	began = time.Now()
	for _, server := range servers {
		require.NoError(t, shared.Admin.DeleteServer(ctx, server.ID))
	}
	for _, server := range servers {
		require.NoError(t, shared.Admin.WaitGone(ctx, server.ID))
	}
	t.Logf("%d servers deleted after %.1f s", count, time.Since(began).Seconds())
	nothingLeft(t, before)
}
