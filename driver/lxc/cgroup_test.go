package lxc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

const (
	hybridMounts = `25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
30 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
31 1 0:24 / /srv/chroot/sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
`
	hybridInit = "5:name=systemd:/init.scope\n4:pids:/\n3:memory:/\n2:cpu,cpuacct:/\n0::/init.scope\n"
	v2Mounts   = "25 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
)

func TestParseCgroups(t *testing.T) {
	t.Parallel()
	cg, err := parseCgroups(strings.NewReader(hybridMounts), strings.NewReader(hybridInit))
	require.NoError(t, err)
	require.Equal(t, cgroups{layout: layoutHybrid, dirs: map[string]string{
		"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory",
		"pids": "/sys/fs/cgroup/pids", "name=systemd": "/sys/fs/cgroup/systemd", "": "/sys/fs/cgroup/unified",
	}}, cg)
	require.Empty(t, cg.missing())
	require.Equal(t, "/sys/fs/cgroup/memory/g/memory.limit_in_bytes", cg.file("memory", "g", "memory.limit_in_bytes"))

	cg, err = parseCgroups(strings.NewReader(v2Mounts), strings.NewReader("0::/init.scope\n"))
	require.NoError(t, err)
	require.Equal(t, cgroups{layout: layoutV2, dirs: map[string]string{"": "/sys/fs/cgroup"}}, cg)
	require.Equal(t, "/sys/fs/cgroup/g/memory.max", cg.file("memory", "g", "memory.max"))

	v1 := strings.ReplaceAll(hybridMounts, "cgroup2 cgroup2", "tmpfs tmpfs")
	cg, err = parseCgroups(strings.NewReader(v1), strings.NewReader(hybridInit))
	require.NoError(t, err)
	require.Equal(t, layoutV1, cg.layout)

	// Init in a group of its own, as in a container: guests are below it.
	cg, err = parseCgroups(strings.NewReader(v2Mounts), strings.NewReader("0::/machine/init.scope\n"))
	require.NoError(t, err)
	require.Equal(t, "/sys/fs/cgroup/machine/g/pids.max", cg.file("pids", "g", "pids.max"))

	_, err = parseCgroups(strings.NewReader(""), strings.NewReader(""))
	require.ErrorContains(t, err, "no cgroup file system")
}

// fakeTree is a cgroup v2 tree of ordinary files.
func fakeTree(t *testing.T, files map[string]string) cgroups {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return cgroups{layout: layoutV2, dirs: map[string]string{unified: dir}}
}

func TestProcs(t *testing.T) {
	t.Parallel()
	cg := fakeTree(t, map[string]string{
		"g/cgroup.procs": "10\n11\n", "g/init.scope/cgroup.procs": "12\n", "h/cgroup.procs": "13\n", "g/user/threaded/cgroup.type": "threaded",
	})
	pids, err := cg.procs("g")
	require.NoError(t, err)
	require.ElementsMatch(t, []int{10, 11, 12}, pids)
	pids, err = cg.procs("none")
	require.NoError(t, err)
	require.Empty(t, pids)
}

func TestFreezeTimesOut(t *testing.T) {
	t.Parallel()
	cg := fakeTree(t, map[string]string{"g/cgroup.events": "populated 1\nfrozen 0\n", "g/cgroup.freeze": "0"})
	require.False(t, cg.frozen("g"))
	ctx, cancel := contextWithTimeout(t, 30*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, cg.freeze(ctx, "g", true), driver.ErrTimeout)
	b, err := os.ReadFile(cg.file(unified, "g", "cgroup.freeze"))
	require.NoError(t, err)
	require.Equal(t, "0", string(b), "thawed again")
	require.NoError(t, os.WriteFile(cg.file(unified, "g", "cgroup.events"), []byte("populated 1\nfrozen 1\n"), 0o600))
	require.NoError(t, cg.freeze(t.Context(), "g", true))
	require.True(t, cg.frozen("g"))
}

func TestRemoveCgroups(t *testing.T) {
	t.Parallel()
	cg := cgroups{dirs: map[string]string{"a": t.TempDir(), "b": t.TempDir()}}
	require.NoError(t, os.MkdirAll(filepath.Join(cg.dirs["a"], "g/x/y"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(cg.dirs["b"], "other"), 0o700))
	require.NoError(t, cg.remove("g"))
	require.NoDirExists(t, filepath.Join(cg.dirs["a"], "g"))
	require.DirExists(t, filepath.Join(cg.dirs["b"], "other"))
	require.NoError(t, cg.remove("g"), "repeated")
}
