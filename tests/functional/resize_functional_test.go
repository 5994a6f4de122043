//go:build functional

package functional

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// limitsScript tells the guest's limits and the size of its root disk, in MiB.
const limitsScript = `cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; df -Pm / | awk 'NR==2{print ($2 > 1500) ? "large" : "small"}'`

func TestResizeToAnotherHost(t *testing.T) {
	p := twoHosts(t)
	server := p.boot(cloud.NewServer{})
	answers(t, server)
	p.fill(server.ID)
	before := p.sum(server.ID)
	disable(t, p.here.Host) // where the API would allow it

	moved := p.act(server.ID, "resize", map[string]string{"flavorRef": p.bigger}, "VERIFY_RESIZE")
	require.Equal(t, p.there.Host, moved.Host)
	require.Equal(t, before, p.sum(server.ID))
	require.True(t, strings.HasSuffix(p.sh(server.ID, limitsScript), "large"), "the root disk grew")
	answers(t, moved)
	p.sh(server.ID, "echo lost > /data/lost")

	back := p.act(server.ID, "revertResize", nil, "ACTIVE")
	require.Equal(t, p.here.Host, back.Host)
	require.Equal(t, before, p.sum(server.ID), "as it was before")
	require.True(t, strings.HasSuffix(p.sh(server.ID, limitsScript), "small"))
	answers(t, back)
	m := p.migrations(server.ID)[0]
	require.Equal(t, "reverted", m.Status)
	require.Equal(t, "resize", m.Type)
	require.Equal(t, []string{p.here.Host}, p.held(server.ID))
	require.Empty(t, p.held(m.UUID))
	require.Empty(t, leftovers(t, p.there, server.ID))

	// A stopped server stays so; and it is deleted before it is confirmed.
	p.act(server.ID, "os-stop", nil, "SHUTOFF")
	moved = p.act(server.ID, "resize", map[string]string{"flavorRef": p.bigger}, "VERIFY_RESIZE")
	require.Equal(t, 4, moved.PowerState)
	m = p.migrations(server.ID)[0]
	remove(t, server.ID)
	eventually(t, 30*time.Second, "nothing left on either host", func(context.Context) (bool, error) {
		return len(leftovers(t, p.here, server.ID))+len(leftovers(t, p.there, server.ID)) == 0, nil
	})
	require.Empty(t, p.held(server.ID))
	require.Empty(t, p.held(m.UUID))
}

// mayGrowMounted tells whether this machine lets root make a mounted ext4 larger, as the kernel does for CAP_SYS_RESOURCE.
func mayGrowMounted(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &sets[0]))
	return sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// TestResizeHere needs a control plane whose API has allow_resize_to_same_host.
func TestResizeHere(t *testing.T) {
	p := twoHosts(t)
	if !sameHostAllowed(t) {
		t.Skip("needs allow_resize_to_same_host = true in the API's nova.conf")
	}
	disable(t, p.there.Host)
	server := p.boot(cloud.NewServer{Flavor: p.roomy})
	answers(t, server)
	p.fill(server.ID)
	p.sh(server.ID, "echo kept > /mnt/kept")
	before, start := p.sum(server.ID), p.sh(server.ID, "cut -d' ' -f22 /proc/1/stat")

	moved := p.act(server.ID, "resize", map[string]string{"flavorRef": p.more}, "VERIFY_RESIZE")
	require.Equal(t, p.here.Host, moved.Host)
	require.Equal(t, start, p.sh(server.ID, "cut -d' ' -f22 /proc/1/stat"), "the guest was not stopped")
	require.Contains(t, p.sh(server.ID, limitsScript), "268435456")
	require.Equal(t, []string{p.here.Host}, p.held(server.ID))
	p.act(server.ID, "confirmResize", nil, "ACTIVE")
	require.Equal(t, start, p.sh(server.ID, "cut -d' ' -f22 /proc/1/stat"))

	p.act(server.ID, "resize", map[string]string{"flavorRef": p.roomier}, "VERIFY_RESIZE")
	require.True(t, strings.HasSuffix(p.sh(server.ID, limitsScript), "large"))
	require.InDelta(t, 2, sizeInside(t, server.ID, "/mnt"), 0.14)
	stopped := start != p.sh(server.ID, "cut -d' ' -f22 /proc/1/stat")
	require.Equal(t, !mayGrowMounted(t), stopped, "the guest was stopped")
	p.act(server.ID, "revertResize", nil, "ACTIVE")
	require.True(t, strings.HasSuffix(p.sh(server.ID, limitsScript), "small"))
	require.Equal(t, before, p.sum(server.ID))
	require.InDelta(t, 1, sizeInside(t, server.ID, "/mnt"), 0.07)
	require.Equal(t, "kept", p.sh(server.ID, "cat /mnt/kept"))
	answers(t, moved)
	remove(t, server.ID)
	require.Empty(t, leftovers(t, p.here, server.ID))
}
