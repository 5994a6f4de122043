//go:build functional

package functional

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestStopAndStart(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	first := booted(t, server.ID)
	inside(t, server.ID, "touch", "/kept")

	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	stopped, err := shared.Admin.Server(within(t, 10*time.Second), server.ID)
	require.NoError(t, err)
	require.Equal(t, 4, stopped.PowerState)
	log, err := shared.Admin.ConsoleLog(within(t, 10*time.Second), server.ID, 0)
	require.NoError(t, err, "the console of a stopped server can be read")
	require.Contains(t, log, "busybox: ready")

	act(t, server.ID, "os-start", nil, "ACTIVE")
	answers(t, server)
	require.NotEqual(t, first, booted(t, server.ID))
	inside(t, server.ID, "test", "-e", "/kept")
}

func TestReboot(t *testing.T) {
	for _, kind := range []string{"SOFT", "HARD"} {
		t.Run(kind, func(t *testing.T) {
			server := boot(t, cloud.NewServer{})
			answers(t, server)
			first := booted(t, server.ID)
			inside(t, server.ID, "touch", "/kept")
			act(t, server.ID, "reboot", map[string]string{"type": kind}, "ACTIVE")
			answers(t, server)
			require.NotEqual(t, first, booted(t, server.ID))
			inside(t, server.ID, "test", "-e", "/kept")
			log, err := shared.Admin.ConsoleLog(within(t, 10*time.Second), server.ID, 0)
			require.NoError(t, err)
			require.Equal(t, kind == "SOFT", strings.Contains(log, "busybox: shutting down"), "only a soft reboot asks the guest:\n%s", log)
		})
	}
}

// TestRebootOfReadOnlyDisk: a root disk in which the kernel has met an error can be written again after a hard reboot.
func TestRebootOfReadOnlyDisk(t *testing.T) {
	server := boot(t, cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1}, nil), Networks: "none"})
	inside(t, server.ID, "touch", "/kept")
	require.NoError(t, os.WriteFile(filepath.Join("/sys/fs/ext4", rootDevice(t, server.ID), "trigger_fs_error"), []byte("an error by the test\n"), 0))
	out := inside(t, server.ID, "sh", "-c", "touch /more 2>&1; true")
	require.Contains(t, strings.Join(strings.Fields(out), " "), "Read-only file system")
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	inside(t, server.ID, "touch", "/kept", "/more")
}

func TestPoweroffInsideIsNoticed(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	shutDown(t, server.ID, "poweroff")
	eventually(t, 10*time.Second, "SHUTOFF", func(ctx context.Context) (bool, error) {
		now, err := shared.Admin.Server(ctx, server.ID)
		return now.Status == "SHUTOFF" && now.TaskState == "", err
	})
	act(t, server.ID, "os-start", nil, "ACTIVE")
	answers(t, server)
}

func TestRebootInsideIsNoticed(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	first := booted(t, server.ID)
	shutDown(t, server.ID, "reboot")
	eventually(t, 10*time.Second, "a guest that has booted again", func(ctx context.Context) (bool, error) {
		stat, err := shared.Agent.Exec(ctx, server.ID, "cat", "/proc/1/stat")
		if err != nil {
			return false, nil //nolint:nilerr // on its way
		}
		fields := strings.Fields(stat)
		return len(fields) > 21 && fields[21] != first, nil
	})
	answers(t, server)
	time.Sleep(2 * time.Second) // for a mistaken SHUTOFF to show
	now, err := shared.Admin.Server(within(t, 10*time.Second), server.ID)
	require.NoError(t, err)
	require.Equal(t, "ACTIVE", now.Status)
	require.Equal(t, 1, now.PowerState)
}
