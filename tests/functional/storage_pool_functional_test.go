//go:build functional

package functional

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// poolDirectory is a file system of its own for a storage pool.
func poolDirectory(t *testing.T, size string) string {
	t.Helper()
	base, err := os.MkdirTemp("/var/tmp", "storage-pool-") //nolint:usetesting // on a disk, and guests pass through its parents
	require.NoError(t, err)
	require.NoError(t, os.Chmod(base, 0o755)) // guests pass through it
	dir := filepath.Join(base, "pool")
	run := func(ctx context.Context, script string) {
		cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", script)
		cmd.Dir = base
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	t.Cleanup(func() {
		run(context.Background(), "mountpoint -q pool && umount -R pool || umount -R -l pool || true")
		require.NoError(t, os.RemoveAll(base))
	})
	run(t.Context(), "mkdir pool; truncate -s "+size+" disk; mkfs.ext4 -q -F -m 0 disk; mount -o loop disk pool")
	return dir
}

// TestStoragePool: a pool is a resource class of its host. A server comes to it with its data by a resize to a flavor that names it, takes
// nothing of the host's DISK_GB, and leaves nothing there. A pool that no host has is named in the fault.
func TestStoragePool(t *testing.T) {
	dir := poolDirectory(t, "3500M")
	pool := "fast_" + strings.ReplaceAll(shared.Host, "-", "_")
	class := "CUSTOM_LXC_POOL_" + strings.ToUpper(pool)
	p := twoHosts(t, "[lxc]", "extra_pools = "+pool+":dir:"+dir+":1")

	ctx := within(t, time.Minute)
	var provider string
	var inventories map[string]cloud.Inventory
	eventually(t, 30*time.Second, "the pool among the inventories", func(ctx context.Context) (bool, error) {
		var err error
		provider, inventories, err = p.there.Admin.Provider(ctx, p.there.Host)
		return inventories[class].Total > 0, err
	})
	t.Logf("inventories: %+v", inventories)
	require.Equal(t, cloud.Inventory{Total: 3, Reserved: 1, AllocationRatio: 1}, inventories[class])
	_, of, err := p.here.Admin.Provider(ctx, p.here.Host)
	require.NoError(t, err)
	require.NotContains(t, of, class)
	require.Equal(t, of["DISK_GB"].Total, inventories["DISK_GB"].Total, "both hosts are this machine: the default pool is what it was")

	pooled, err := shared.Admin.CreateFlavor(ctx, cloud.NewFlavor{Name: "pooled-" + p.there.Host, VCPUs: 1, RAM: 128, Disk: 1}, map[string]string{
		"lxc:pool": pool, "resources:" + class: "1", "resources:DISK_GB": "0",
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shared.Admin.DeleteFlavor(context.Background(), pooled)) })
	server := p.boot(cloud.NewServer{Networks: "none"})
	p.fill(server.ID)
	before := p.sum(server.ID)
	moved := p.act(server.ID, "resize", map[string]string{"flavorRef": pooled}, "VERIFY_RESIZE")
	require.Equal(t, p.there.Host, moved.Host)
	require.Equal(t, before, p.sum(server.ID))
	require.FileExists(t, filepath.Join(dir, "dir", server.ID, "disk.img"))
	require.NoDirExists(t, filepath.Join(p.there.Agent.StateDir(), "instances", "overlay", server.ID))
	allocations, err := p.there.Admin.Allocations(ctx, provider)
	require.NoError(t, err)
	held, ok := allocations[server.ID].(map[string]any)
	require.True(t, ok)
	require.Equal(t, map[string]any{class: 1., "MEMORY_MB": 128., "VCPU": 1.}, held["resources"])
	p.act(server.ID, "confirmResize", nil, "ACTIVE")

	kill(t, p.there)
	require.NoError(t, p.there.StartAgent(within(t, time.Minute)))
	p.act(server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	require.Equal(t, before, p.sum(server.ID))
	remove(t, server.ID)
	require.Empty(t, leftovers(t, p.there, server.ID))
	require.Empty(t, p.held(server.ID))
	require.NoDirExists(t, filepath.Join(dir, "dir", server.ID))
	eventually(t, 20*time.Second, "the data to be removed", func(context.Context) (bool, error) {
		trash, err := os.ReadDir(filepath.Join(dir, "dir", ".trash"))
		return len(trash) == 0, err
	})

	for name, c := range map[string]struct {
		want  cloud.NewServer
		fault string
	}{
		"flavor": {cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1}, map[string]string{"lxc:pool": "nowhere"})}, `has no storage pool "nowhere"`},
		"image": {
			cloud.NewServer{Image: upload(t, shared.Plane.BusyboxPath(), "raw", map[string]any{"lxc_pool": pool})},
			`has no storage pool "` + pool + `", which the image's property lxc_pool asks for`,
		},
	} {
		t.Run("unknown of "+name, func(t *testing.T) {
			c.want.Networks = "none"
			fault := errored(t, create(t, c.want)).Fault
			require.Contains(t, fault.Message+fault.Details, c.fault)
		})
	}
}
