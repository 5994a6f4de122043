//go:build functional

package lxc

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/drivertest"
)

// testImages names the directory with the images of the functional tests.
const (
	testImages      = "COMPUTE_AGENT_TEST_IMAGES"
	systemdBoot     = 5 * time.Minute // of a machine that others use, too
	systemdShutdown = 3 * time.Minute
)

func TestFunctionalSystemd(t *testing.T) {
	archive := filepath.Join(os.Getenv(testImages), "debian-12-rootfs.tar.xz")
	if _, err := os.Stat(archive); err != nil {
		if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
			t.Fatalf("needs a Debian root file system in the directory that %s names: %v", testImages, err)
		}
		t.Skipf("needs a Debian root file system in the directory that %s names", testImages)
	}
	d := newDriver(t, func(o *Options) { o.ConsoleSize = 1 << 20 })
	spec, rootfs := newSpec(t)
	spec.Limits.MemoryBytes, spec.Limits.CPUQuotaUS, spec.Limits.PIDs = 512<<20, 200000, 1000
	require.NoError(t, os.RemoveAll(rootfs))
	require.NoError(t, os.Mkdir(rootfs, 0o755))                                                                            // a root file system
	out, err := exec.CommandContext(t.Context(), "tar", "-C", rootfs, "--numeric-owner", "-xpf", archive).CombinedOutput() // test input
	require.NoErrorf(t, err, "%s", out)
	// cloud-init would wait for a DHCP server, which nobody runs here.
	require.NoError(t, os.WriteFile(filepath.Join(rootfs, "etc", "cloud", "cloud-init.disabled"), nil, 0o600))
	drivertest.ShiftOwner(t, rootfs, spec.IDs)
	require.Equal(t, "systemd", detectInit(rootfs).name)

	require.NoError(t, d.Create(t.Context(), spec, rootfs))
	begin := time.Now()
	nic := newNIC(t, "eth0")
	require.NoError(t, d.Start(t.Context(), spec.UUID, []driver.NIC{nic}))
	t.Logf("start returned after %s", time.Since(begin))
	require.Eventually(t, func() bool {
		log, err := d.ConsoleLog(t.Context(), spec.UUID, 1<<20)
		return err == nil && strings.Contains(string(log), "login:")
	}, systemdBoot, 100*time.Millisecond)
	t.Logf("login prompt after %s", time.Since(begin))
	state := run(t, d, spec.UUID, "systemctl is-system-running --wait")
	t.Logf("system is %s: %s", state, run(t, d, spec.UUID, "systemctl --failed --no-legend --plain"))
	require.Contains(t, []string{"running", "degraded"}, state)

	require.NoError(t, d.Pause(t.Context(), spec.UUID))
	require.NoError(t, d.Unpause(t.Context(), spec.UUID))
	before := info(t, d, spec.UUID).InitPID
	run(t, d, spec.UUID, "systemctl reboot")
	require.Eventually(t, func() bool {
		i := info(t, d, spec.UUID)
		return i.PowerState == driver.PowerStateRunning && i.InitPID != before
	}, systemdShutdown, 100*time.Millisecond)
	require.Equal(t, nic.Link.MAC, run(t, d, spec.UUID, "cat /sys/class/net/eth0/address"))

	// Asked before it can hear: the request is repeated until systemd takes it.
	begin = time.Now()
	halted, err := d.Shutdown(t.Context(), spec.UUID, systemdShutdown)
	require.NoError(t, err)
	require.True(t, halted)
	t.Logf("halt took %s", time.Since(begin))
	log, err := d.ConsoleLog(t.Context(), spec.UUID, 1<<20)
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(log), "Welcome to Debian"), "the console is kept over the reboot")
	require.True(t, linkExists(nic.Link.Peer))
	requireClean(t, d, spec.Name)
}
