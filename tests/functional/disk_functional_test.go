//go:build functional

package functional

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestBootCloudDisk boots what distributions publish for virtual machines: a qcow2 with partitions, of which the fstab mounts two.
func TestBootCloudDisk(t *testing.T) {
	needQemu(t)
	file, err := shared.Plane.DebianDisk(within(t, 5*time.Minute))
	require.NoError(t, err)
	image := upload(t, file, "qcow2", nil)
	before := snapshot(t)
	server := boot(t, cloud.NewServer{Image: image, Flavor: shared.Small})
	eventually(t, 10*time.Second, "systemd to be the guest's init", func(ctx context.Context) (bool, error) { // it is called init at first
		name, err := shared.Agent.Exec(ctx, server.ID, "cat", "/proc/1/comm")
		return strings.TrimSpace(name) == "systemd", err
	})
	// Before the prompt cloud-init looks for the metadata service, twice, and there is none.
	eventually(t, 3*time.Minute, "login prompt on the console", func(ctx context.Context) (bool, error) {
		log, err := shared.Admin.ConsoleLog(ctx, server.ID, 0)
		return strings.Contains(log, "login:"), err
	})
	answers(t, server)
	eventually(t, 90*time.Second, "end of booting", func(ctx context.Context) (bool, error) {
		state, _ := shared.Agent.Exec(ctx, server.ID, "systemctl", "is-system-running")
		return strings.TrimSpace(state) == "running" || strings.TrimSpace(state) == "degraded", nil
	})
	failed := inside(t, server.ID, "systemctl", "list-units", "--failed", "--plain", "--no-legend")
	if failed != "" {
		t.Logf("failed units:\n%s\n%s", failed, inside(t, server.ID, "journalctl", "--no-pager", "-p", "warning"))
	}
	for _, unit := range []string{".mount", "fsck", "remount-fs", "growfs", "local-fs", "cloud-", "network"} {
		require.NotContains(t, failed, unit)
	}
	require.Contains(t, inside(t, server.ID, "cat", "/etc/fstab"), "# no such device in a container: PARTUUID=")
	require.Contains(t, inside(t, server.ID, "networkctl", "--no-pager", "status", "eth0"), server.IP(), "systemd-networkd has the address")
	require.Contains(t, inside(t, server.ID, "cat", "/var/log/cloud-init.log"), "DataSourceOpenStack", "cloud-init knows where it is")
	size := strings.Fields(inside(t, server.ID, "df", "-B1M", "--output=size", "/"))
	require.Contains(t, []string{"1", "2"}, size[1][:1], "the flavor's 2 GiB, less the file system's own: %s", size)
	remove(t, server.ID)
	nothingLeft(t, before)
}

// TestBootRawDisk boots a raw disk with an MBR.
func TestBootRawDisk(t *testing.T) {
	needQemu(t)
	file, err := shared.Plane.BusyboxDisk(within(t, time.Minute), t.TempDir())
	require.NoError(t, err)
	server := boot(t, cloud.NewServer{Image: upload(t, file, "raw", nil)})
	answers(t, server)
}

// TestRefusedDisk: an image that would make the host open another file ends in ERROR, and the fault says what would work. A Glance that looks
// into disks does not even take it.
func TestRefusedDisk(t *testing.T) {
	needQemu(t)
	dir := t.TempDir()
	for name, c := range map[string]struct{ options, reason string }{
		"backing-file": {"-b /etc/shadow -F raw", "backing file"},
		"data-file":    {"-o data_file=" + filepath.Join(dir, "data"), "external data file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name+".qcow2")
			out, err := exec.CommandContext(t.Context(), "/bin/sh", "-ec", "qemu-img create -q -f qcow2 "+c.options+" "+file+" 1M").CombinedOutput()
			require.NoError(t, err, string(out))
			if shared.Plane.Release.InspectsDisks {
				refusedByGlance(t, file)
				return
			}
			before := snapshot(t)
			id := create(t, cloud.NewServer{Image: upload(t, file, "qcow2", nil)})
			fault := errored(t, id).Fault.Message
			require.Contains(t, fault, c.reason)
			require.Contains(t, fault, "qemu-img convert")
			nothingLeft(t, before)
		})
	}
}

func refusedByGlance(t *testing.T, file string) {
	t.Helper()
	data, err := os.Open(file)
	require.NoError(t, err)
	defer data.Close()
	_, err = tryUpload(t, data, "qcow2", nil)
	require.True(t, cloud.IsStatus(err, http.StatusUnsupportedMediaType), "%v", err)
}

func needQemu(t *testing.T) {
	t.Helper()
	for _, name := range []string{"qemu-img", "sfdisk", "mkfs.vfat"} {
		if _, err := exec.LookPath(name); err != nil {
			need(name)
			t.Skipf("this test needs %s", name)
		}
	}
}
