//go:build functional

package lxc

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// TestFunctionalConfigDrive: the guest's root reads its config drive and cannot change it, whatever it tries.
func TestFunctionalConfigDrive(t *testing.T) {
	d := newDriver(t)
	tree, at := testDir(t), testDir(t)
	require.NoError(t, os.Chmod(at, 0o711))
	s := started(t, d, nil, func(s *driver.Spec) {
		file := filepath.Join(tree, "secret")
		require.NoError(t, os.WriteFile(file, []byte("for root only"), 0o400))
		for _, path := range []string{file, tree} {
			require.NoError(t, os.Chown(path, int(s.IDs.Base), int(s.IDs.Base)))
		}
		require.NoError(t, os.Chmod(tree, 0o500))
		require.NoError(t, mount.CloneLocked(tree, at))
		t.Cleanup(func() { _ = mount.Detach(at) })
		s.Binds = []driver.Bind{{Source: at, Target: "config-drive", ReadOnly: true}}
	})
	require.Equal(t, "for root only", run(t, d, s.UUID, "cat /config-drive/secret"))
	require.Equal(t, "0 0 400", run(t, d, s.UUID, "stat -c '%u %g %a' /config-drive/secret"))
	for _, try := range []string{
		"echo x > /config-drive/secret", "echo x > /config-drive/new", "rm -f /config-drive/secret", "chmod 644 /config-drive/secret",
		"mount -o remount,rw,bind /config-drive && echo x > /config-drive/secret",
		"mkdir -p /m && mount --bind /config-drive /m && mount -o remount,rw,bind /m && echo x > /m/secret",
		"umount /config-drive && mount -o remount,rw,bind / && echo x > /config-drive/secret && false",
	} {
		require.NotEqual(t, "done", run(t, d, s.UUID, "("+try+") 2>/dev/null && echo done"), try)
	}
	content, err := os.ReadFile(filepath.Join(tree, "secret"))
	require.NoError(t, err)
	require.Equal(t, "for root only", string(content))
}
