package glanceimage

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

// TestCheckInit: trees as distributions lay them out, on each kind of host.
func TestCheckInit(t *testing.T) {
	t.Parallel()
	const v1, hybrid, v2 = hostinfo.CgroupV1, hostinfo.CgroupHybrid, hostinfo.CgroupV2
	for _, c := range []struct {
		name, init string
		files      []string
		refused    map[hostinfo.Layout]string
	}{
		{"CentOS 7", "../lib/systemd/systemd", []string{"usr/lib/systemd/systemd"}, map[hostinfo.Layout]string{v2: "older than 231 and needs cgroup v1"}},
		{"Ubuntu 16.04", "/lib/systemd/systemd", []string{"lib/systemd/systemd"}, map[hostinfo.Layout]string{v2: "this host has v2 alone"}},
		{"Alma 8", "../lib/systemd/systemd", []string{"usr/lib/systemd/libsystemd-shared-239.so"}, nil},
		{"Debian 12", "/lib/systemd/systemd", []string{"usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so"}, nil},
		{"Debian 13", "/lib/systemd/systemd", []string{"usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so"}, nil},
		{"Fedora 43", "../lib/systemd/systemd", []string{"usr/lib/systemd/libsystemd-shared-258-1.fc43.so"}, map[hostinfo.Layout]string{v1: "systemd 258 needs cgroup v2", hybrid: "this host has v1"}},
		{"another init", "/bin/busybox", []string{"usr/lib/systemd/systemd"}, nil},
		{"systemd aside", "", []string{"sbin/init", "usr/lib/systemd/systemd"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			require.NoError(t, os.Mkdir(filepath.Join(dir, "sbin"), 0o755))
			for _, file := range c.files {
				require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(file)), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), nil, 0o755))
			}
			if c.init != "" {
				require.NoError(t, os.Symlink(c.init, filepath.Join(dir, "sbin", "init")))
			}
			for _, host := range []hostinfo.Layout{v1, hybrid, v2, ""} {
				err := CheckInit("image", dir, host)
				if want, ok := c.refused[host]; ok {
					require.True(t, exception.Is(err, "ComputeResourcesUnavailable"), "%v", err)
					require.ErrorContains(t, err, want)
					continue
				}
				require.NoError(t, err, "on %s", host)
			}
		})
	}
	require.NoError(t, CheckInit("image", filepath.Join(t.TempDir(), "none"), v2), "what is not there is told of elsewhere")
}
