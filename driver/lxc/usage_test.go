package lxc

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

func TestUsageOfCgroups(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		layout layout
		files  map[string]string // controller/file
		want   driver.Usage
	}{
		{"v1", layoutHybrid, map[string]string{
			"cpuacct/cpuacct.usage": "17300000000\n", "memory/memory.usage_in_bytes": "104857600\n",
			"memory/memory.stat":                              "cache 1\nrss 2\ntotal_cache 4857600\ntotal_swap 4096\n",
			"blkio/blkio.throttle.io_service_bytes_recursive": "254:0 Read 4096\n254:0 Write 1024\n254:0 Total 5120\n7:3 Read 512\n7:3 Write 8192\nTotal 9\n",
			"blkio/blkio.throttle.io_serviced_recursive":      "254:0 Read 1\n7:3 Write 2\n",
		}, driver.Usage{
			CPUTime: 17300 * time.Millisecond, MemoryUsed: 100000000, MemoryCache: 4857600, SwapUsed: 4096,
			ReadBytes: 4096, WriteBytes: 8192, ReadRequests: 1, WriteRequests: 2,
		}},
		{"v2", layoutV2, map[string]string{
			"unified/cpu.stat": "usage_usec 17300000\nuser_usec 1\n", "unified/memory.current": "300\n", "unified/memory.swap.current": "7\n",
			"unified/memory.stat": "anon 100\nfile 200\n",
			"unified/io.stat":     "8:0 rbytes=10 wbytes=20 rios=3 wios=4 dbytes=0 dios=0\n7:0 rbytes=5 wbytes=25 rios=1 wios=6\n\n",
		}, driver.Usage{
			CPUTime: 17300 * time.Millisecond, MemoryUsed: 100, MemoryCache: 200, SwapUsed: 7,
			ReadBytes: 10, WriteBytes: 25, ReadRequests: 3, WriteRequests: 6,
		}},
		{"nothing counted", layoutV1, nil, driver.Usage{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			cg := cgroups{layout: c.layout, dirs: map[string]string{unified: filepath.Join(base, "unified")}}
			for _, controller := range []string{"cpuacct", "memory", "blkio"} {
				cg.dirs[controller] = filepath.Join(base, controller)
			}
			for file, text := range c.files {
				dir := filepath.Join(base, filepath.Dir(file), "g")
				require.NoError(t, os.MkdirAll(dir, 0o700))
				require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o600))
			}
			got := cg.usageV1("g")
			if c.layout == layoutV2 {
				got = cg.usageV2("g")
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestSuspensionBelongsToOneRun(t *testing.T) {
	t.Parallel()
	d := &Driver{o: Options{StateDir: t.TempDir()}}
	require.False(t, d.suspended("u", os.Getpid()))
	run, err := runOf(os.Getpid())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(d.suspendFile("u"), []byte(run), 0o600))
	require.True(t, d.suspended("u", os.Getpid()))
	require.False(t, d.suspended("u", os.Getppid()), "another process was never suspended")
	require.False(t, d.suspended("u", 1<<30))
	require.NoError(t, d.endSuspension("u"))
	require.NoError(t, d.endSuspension("u"))
	require.False(t, d.suspended("u", os.Getpid()))
}

func TestWriteChildWritesToCgroupsAlone(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f")
	require.Equal(t, exitUsage, writeChild([]string{file, "1"}))
	require.Equal(t, exitUsage, writeChild([]string{"/sys/fs/cgroup/../../../etc/passwd", "1"}))
	require.Equal(t, exitUsage, writeChild(nil))
	require.NoFileExists(t, file)
	require.Equal(t, exitFailed, writeChild([]string{"/sys/fs/cgroup/compute-agent-none/memory.reclaim", "1"}))
}
