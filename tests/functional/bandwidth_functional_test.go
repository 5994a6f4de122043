//go:build functional

package functional

import (
	"context"
	"math"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// fetched reads the server's page and returns the rate in kB/s.
func fetched(t *testing.T, server cloud.Server, page string, bytes int) float64 {
	t.Helper()
	serves(t, server)
	script := `exec 3<>/dev/tcp/` + server.IP() + `/80; printf 'GET /` + page + ` HTTP/1.0\r\n\r\n' >&3; cat <&3 | wc -c`
	began := time.Now()
	out, err := exec.CommandContext(within(t, time.Minute), "ip", "netns", "exec", shared.Netns(), "bash", "-c", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotEmpty(t, strings.TrimSpace(string(out)))
	rate := float64(bytes) / 1000 / time.Since(began).Seconds()
	t.Logf("%d kB at %.0f kB/s", bytes/1000, rate)
	return rate
}

// TestBandwidthOfTheFlavor: what a guest sends keeps to the flavor's rate, after a reboot and on an attached port too, and nothing
// of the limit stays on the host.
func TestBandwidthOfTheFlavor(t *testing.T) {
	const size = 2_000_000
	limit := 1000.0 // twice the flavor's
	if shared.Plane.Net == controlplane.OVS {
		limit = math.Inf(1) // in user space it takes what a guest sends off the link before traffic control does
	}
	ctx := within(t, time.Minute)
	flavor, err := shared.Admin.CreateFlavor(ctx, cloud.NewFlavor{Name: "hplug-slow", VCPUs: 1, RAM: 128, Disk: 1},
		map[string]string{"quota:vif_outbound_average": "500", "quota:vif_outbound_burst": "32", "quota:vif_inbound_average": "4000"})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, shared.Admin.DeleteFlavor(ctx, flavor))
	})
	server := boot(t, cloud.NewServer{Flavor: flavor})
	answers(t, server)
	inside(t, server.ID, "dd", "if=/dev/zero", "of=/www/big", "bs=1000", "count=2000")
	rate := fetched(t, server, "big", size)
	require.Less(t, rate, limit, "more than twice the limit")
	require.Greater(t, rate, 100.0)

	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	answers(t, server)
	require.Less(t, fetched(t, server, "big", size), limit, "after a reboot")
	more, err := attach(t, server.ID, map[string]any{"net_id": shared.Network})
	require.NoError(t, err)
	classes, err := exec.CommandContext(within(t, time.Minute), "tc", "class", "show", "dev", ("ifb" + more.PortID)[:14]).CombinedOutput()
	require.NoError(t, err, "%s", classes)
	require.Contains(t, string(classes), "rate 4Mbit")
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+server.ID)
	require.NoError(t, err)
	require.Len(t, ports, 2)
	detach(t, server.ID, more.PortID)
	remove(t, server.ID)
	for _, p := range ports {
		noDevice(t, p.ID)
		require.NoFileExists(t, "/sys/class/net/"+("ifb" + p.ID)[:14]+"/uevent")
	}
}
