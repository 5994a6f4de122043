package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
)

// passable is a directory through which guests can pass.
func passable(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		require.NoError(t, os.Chmod(d, 0o755))
	}
	return dir
}

// TestPools: what the configuration names is opened, each in its directory; one whose directory is missing is not made.
func TestPools(t *testing.T) {
	_, err := os.Stat(ext4.Program)
	functest.Need(t, err == nil, ext4.Program)
	base := passable(t)
	c := config.New()
	c.LXC.InstancesDir, c.LXC.StorageBackend = filepath.Join(base, "instances"), "dir"
	c.LXC.ExtraPools = []config.Pool{{Name: "fast", Backend: "dir", Dir: filepath.Join(base, "fast")}}
	_, err = openRoots(t.Context(), c)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "storage pool fast ([lxc] extra_pools)")
	require.NoDirExists(t, c.LXC.ExtraPools[0].Dir)
	missing := checkStorage(c)
	require.Len(t, missing, 1)
	require.Equal(t, "[lxc] extra_pools: warning: directory "+c.LXC.ExtraPools[0].Dir+" of pool fast does not exist (make it, or mount the pool's file system there)", missing[0].String())
	require.Empty(t, checkSharing(c))

	require.NoError(t, os.Mkdir(c.LXC.ExtraPools[0].Dir, 0o755))
	roots, err := openRoots(t.Context(), c)
	require.NoError(t, err)
	require.DirExists(t, filepath.Join(c.LXC.ExtraPools[0].Dir, "dir"))
	require.DirExists(t, filepath.Join(c.LXC.InstancesDir, "dir"))
	for name, want := range map[string]error{"": nil, "fast": nil, "slow": storage.ErrNoPool} {
		_, err := roots.PoolUsage(t.Context(), name)
		require.ErrorIs(t, err, want, name)
	}
	require.Empty(t, checkStorage(c))
	shared := checkSharing(c)
	require.Len(t, shared, 1)
	require.Contains(t, shared[0].Message, "pool fast is on the file system of instances_dir, whose room Placement counts for both")
}
