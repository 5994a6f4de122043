package lxc

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

func TestSampleOfCgroups(t *testing.T) {
	t.Parallel()
	pressure := map[string]string{
		"unified/g/cpu.pressure":    "some avg10=12.50 avg60=3.00 avg300=1.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"unified/g/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=7\n",
		"unified/g/io.pressure":     "nonsense\nsome avg10=x total=1\n",
	}
	wanted := []driver.Pressure{{Resource: "cpu", Average: 0.125, Total: 2500 * time.Millisecond}, {Resource: "memory", Total: time.Microsecond}}
	for _, c := range []struct {
		name   string
		layout layout
		files  []map[string]string // controller/group/file
		want   driver.Sample
	}{
		{"v1", layoutV1, []map[string]string{{
			"pids/g/pids.current": "12\n", "cpuacct/g/cpuacct.usage": "5000000000\n", "cpu/g/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 250000000\n",
			"memory/g/memory.usage_in_bytes": "300\n", "memory/g/memory.stat": "total_cache 200\ntotal_swap 7\n", "memory/g/memory.limit_in_bytes": "1000\n",
			"memory/g/memory.oom_control":       "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
			"memory/g/below/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		}}, driver.Sample{
			Usage: driver.Usage{CPUTime: 5 * time.Second, MemoryUsed: 100, MemoryCache: 200, SwapUsed: 7},
			Tasks: 12, Throttled: 250 * time.Millisecond, MemoryLimit: 1000, OOMKills: 3,
		}},
		{"hybrid, no limit", layoutHybrid, []map[string]string{{
			"pids/g/pids.current": "1\n", "memory/g/memory.limit_in_bytes": "9223372036854771712\n",
		}, pressure}, driver.Sample{Tasks: 1, Pressure: wanted}},
		{"v2", layoutV2, []map[string]string{{
			"unified/g/pids.current": "12\n", "unified/g/cpu.stat": "usage_usec 5000000\nnr_throttled 2\nthrottled_usec 250000\n",
			"unified/g/memory.current": "300\n", "unified/g/memory.stat": "anon 100\nfile 200\n", "unified/g/memory.swap.current": "7\n",
			"unified/g/memory.max": "1000\n", "unified/g/memory.events": "low 0\nhigh 5\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n",
			"unified/g/below/memory.events": "oom_kill 2\n",
		}, pressure}, driver.Sample{
			Usage: driver.Usage{CPUTime: 5 * time.Second, MemoryUsed: 100, MemoryCache: 200, SwapUsed: 7},
			Tasks: 12, Throttled: 250 * time.Millisecond, MemoryLimit: 1000, OOMKills: 3, Pressure: wanted,
		}},
		{"v2, no limit", layoutV2, []map[string]string{{"unified/g/pids.current": "1\n", "unified/g/memory.max": "max\n"}}, driver.Sample{Tasks: 1}},
		{"not running", layoutV2, nil, driver.Sample{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			cg := cgroups{layout: c.layout, dirs: map[string]string{}}
			controllers := []string{"cpu", "cpuacct", "memory", "pids", "blkio"}
			if c.layout != layoutV1 {
				cg.dirs[unified] = filepath.Join(base, "unified")
			}
			if c.layout != layoutV2 {
				for _, controller := range controllers {
					cg.dirs[controller] = filepath.Join(base, controller)
				}
			}
			for _, files := range c.files {
				for file, text := range files {
					path := filepath.Join(base, file)
					require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
					require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
				}
			}
			require.Equal(t, c.want, cg.sample(t.Context(), "g"))
		})
	}
}
