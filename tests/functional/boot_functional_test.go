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

// TestBootManyAtOnce: as many servers as nova asks for at once, of an image that this host has never seen and fetches once. Until
// all builds that go on at the same time wait for it, it does not come.
func TestBootManyAtOnce(t *testing.T) {
	const count, building = 20, 10 // max_concurrent_builds
	image := uploadImage(t, distinct(t))
	glance := throughProxy(t)
	release := glance.hold()
	t.Cleanup(release) // before the proxy ends
	before := snapshot(t)
	imports := logEnd(t)
	began := time.Now()
	name := "many"
	t.Cleanup(func() { deleteNamed(t, name+"-") })
	create(t, cloud.NewServer{Name: name, Image: image, MinCount: count, MaxCount: count})
	ctx := within(t, 5*time.Minute)
	var servers []cloud.Server
	eventually(t, time.Minute, "builds to wait for the image", func(ctx context.Context) (bool, error) {
		var err error
		servers, err = shared.Admin.Servers(ctx, name+"-")
		spawning := 0
		for _, server := range servers {
			if server.TaskState == "spawning" {
				spawning++
			}
		}
		return spawning >= building, err
	})
	require.Len(t, servers, count)
	release()
	for i, server := range servers {
		var err error
		servers[i], err = shared.Admin.WaitStatus(ctx, server.ID, "ACTIVE")
		require.NoError(t, err)
	}
	t.Logf("%d servers ACTIVE after %.1f s", count, time.Since(began).Seconds())
	require.Len(t, glance.downloads(), 1, "downloads of the image")
	require.Equal(t, []string{image}, imagesImported(t, imports))
	require.Len(t, stored(t)[image].Instances, count)
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
	require.Empty(t, stored(t)[image].Instances)
	nothingStaged(t)
}
