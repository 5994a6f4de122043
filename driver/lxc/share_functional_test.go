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

// TestFunctionalShare: a guest sees directories of the host with its own ids, and cannot make one writable that is not, whatever
// it tries; a link of its image does not bring one to the kernel's files.
func TestFunctionalShare(t *testing.T) {
	d := newDriver(t)
	data, tools, at := testDir(t), testDir(t), testDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(tools, "file"), []byte("tool"), 0o600))
	require.NoError(t, os.Chown(filepath.Join(tools, "file"), 1000, 1000))
	s := started(t, d, nil, func(s *driver.Spec) {
		for name, source := range map[string]string{"data": data, "tools": tools} {
			point := filepath.Join(at, name)
			require.NoError(t, mount.Point(point))
			dir, err := os.Open(source)
			require.NoError(t, err)
			defer dir.Close()
			require.NoError(t, mount.ShareIDMapped(dir, point, s.IDs, name == "data"))
			t.Cleanup(func() { _ = mount.Detach(point) })
			s.Binds = append(s.Binds, driver.Bind{Source: point, Target: "srv/" + name})
		}
	})
	require.Equal(t, "1000 tool", run(t, d, s.UUID, "echo $(stat -c %u /srv/tools/file) $(cat /srv/tools/file)"))
	require.Equal(t, "0", run(t, d, s.UUID, "echo x > /srv/data/new && stat -c %u /srv/data/new"))
	for _, try := range []string{
		"echo x > /srv/tools/file", "mount -o remount,rw,bind /srv/tools && echo x > /srv/tools/file",
		"mkdir -p /m && mount --bind /srv/tools /m && mount -o remount,rw,bind /m && echo x > /m/file",
		"mount -o remount,suid,dev,bind /srv/data",
	} {
		require.NotEqual(t, "done", run(t, d, s.UUID, "("+try+") 2>/dev/null && echo done"), try)
	}
	require.NoError(t, d.Destroy(t.Context(), s.UUID))

	spec, rootfs := newSpec(t)
	require.NoError(t, os.Symlink("/proc/self", filepath.Join(rootfs, "sly")))
	spec.Binds = []driver.Bind{{Source: filepath.Join(at, "data"), Target: "sly/attr"}}
	err := d.Create(t.Context(), spec, rootfs)
	if err == nil {
		err = d.Start(t.Context(), spec.UUID, nil)
		require.NoError(t, d.Destroy(t.Context(), spec.UUID))
	}
	require.Error(t, err)
}
