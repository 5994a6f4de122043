package lxc

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/driver"
)

var _ driver.Sampler = (*Driver)(nil)

const (
	// noLimit is more than any limit of memory: v1 shows the largest number of pages that it can count.
	noLimit = 1 << 60
	// maxGroups is how many groups a guest may have made below its own for all of them to be looked at.
	maxGroups = 512
)

// Sample implements driver.Sampler by the guest's cgroup alone: none of its processes is looked at.
func (d *Driver) Sample(ctx context.Context, uuid string) (driver.Sample, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return driver.Sample{}, err
	}
	s := d.cgroups.sample(ctx, payload(rec.Spec.Name))
	if s.Tasks == 0 { // no such group, or an empty one that is about to go
		return driver.Sample{}, fmt.Errorf("sample instance %s: %w", uuid, driver.ErrNotRunning)
	}
	return s, nil
}

func (c cgroups) sample(ctx context.Context, group string) driver.Sample {
	s := driver.Sample{Tasks: c.number("pids", group, "pids.current")}
	if s.Tasks == 0 {
		return s
	}
	if c.layout == layoutV2 {
		s.Usage = c.usageV2(group)
		s.Throttled = time.Duration(keyValues(c.text(unified, group, "cpu.stat"))["throttled_usec"]) * time.Microsecond
		s.MemoryLimit = c.number(unified, group, "memory.max") // not a number: none
	} else {
		s.Usage = c.usageV1(group)
		s.Throttled = time.Duration(keyValues(c.text("cpu", group, "cpu.stat"))["throttled_time"])
		s.MemoryLimit = c.number("memory", group, "memory.limit_in_bytes")
	}
	if s.MemoryLimit >= noLimit {
		s.MemoryLimit = 0
	}
	s.OOMKills = c.oomKills(ctx, group)
	s.Pressure = c.pressure(group)
	return s
}

// oomKills counts the processes that were killed in a group and below it. v2 tells; v1 counts each
// where it was (mm/memcontrol-v1.c:mem_cgroup_oom_control_read), and forgets it with its group.
func (c cgroups) oomKills(ctx context.Context, group string) int64 {
	if c.layout == layoutV2 {
		return keyValues(c.text(unified, group, "memory.events"))["oom_kill"]
	}
	base, ok := c.dirs["memory"]
	if !ok {
		return 0
	}
	var kills int64
	left := maxGroups
	_ = filepath.WalkDir(filepath.Join(base, group), func(path string, e fs.DirEntry, err error) error {
		if left == 0 || ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil || !e.IsDir() {
			return nil //nolint:nilerr // the group has just gone
		}
		left--
		if b, err := os.ReadFile(filepath.Join(path, "memory.oom_control")); err == nil {
			kills += keyValues(string(b))["oom_kill"]
		}
		return nil
	})
	return kills
}

// pressure reads what a group waits for. The files belong to v2's tree, which may be there beside v1's controllers.
func (c cgroups) pressure(group string) []driver.Pressure {
	base, ok := c.dirs[unified]
	if !ok {
		return nil
	}
	var all []driver.Pressure
	for _, resource := range []string{"cpu", "io", "memory"} {
		b, err := os.ReadFile(filepath.Join(base, group, resource+".pressure"))
		if err != nil { // not in this kernel, or switched off (psi=0)
			continue
		}
		if p, ok := parsePressure(string(b)); ok {
			p.Resource = resource
			all = append(all, p)
		}
	}
	return all
}

// parsePressure reads "some avg10=0.12 avg60=0.00 avg300=0.00 total=3456" (percent, microseconds).
func parsePressure(text string) (p driver.Pressure, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "some" {
			continue
		}
		values := map[string]float64{}
		for _, pair := range f[1:] {
			k, v, _ := strings.Cut(pair, "=")
			n, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return p, false
			}
			values[k] = n
		}
		return driver.Pressure{Average: values["avg10"] / 100, Total: time.Duration(values["total"]) * time.Microsecond}, true
	}
	return p, false
}
