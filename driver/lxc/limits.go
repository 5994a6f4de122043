package lxc

import (
	"fmt"

	"github.com/compute-agent/compute-agent/flavor"
)

// item is one line of liblxc's configuration.
type item struct{ key, value string }

// Scales of the proportional CPU weight: cgroup v1 from 2 to 262144, v2 from 1 to 10000.
const (
	minShares, maxShares = 2, 262144
	minWeight, maxWeight = 1, 10000
)

// cpuWeight converts cpu.shares to cpu.weight as systemd and the OCI runtimes do.
func cpuWeight(shares uint64) uint64 {
	shares = min(max(shares, minShares), maxShares)
	return minWeight + (shares-minShares)*(maxWeight-minWeight)/(maxShares-minShares)
}

// limitItems renders limits for the host's layout. liblxc ignores v2 keys on hybrid
// and v1 hosts and the reverse (cgfsng.c:cgfsng_setup_limits), and liblxc 7 refuses
// v1 keys, so only the family that counts is written. swap says whether the kernel
// accounts for swap (v1 with swapaccount=0 does not).
func limitItems(l flavor.Limits, lay layout, swap bool) []item {
	if lay == layoutV2 {
		return limitItemsV2(l, swap)
	}
	return limitItemsV1(l, swap)
}

func limitItemsV1(l flavor.Limits, swap bool) []item {
	var items []item
	add := func(file string, v any) { items = append(items, item{"lxc.cgroup." + file, fmt.Sprint(v)}) }
	if l.MemoryBytes > 0 {
		add("memory.limit_in_bytes", l.MemoryBytes)
		if swap { // memory and swap together; must follow the memory limit
			add("memory.memsw.limit_in_bytes", l.MemoryBytes+l.SwapBytes)
		}
	}
	if l.CPUShares > 0 {
		add("cpu.shares", min(max(l.CPUShares, minShares), maxShares))
	}
	if l.CPUPeriodUS > 0 && l.CPUQuotaUS > 0 { // the quota is checked against the period
		add("cpu.cfs_period_us", l.CPUPeriodUS)
		add("cpu.cfs_quota_us", l.CPUQuotaUS)
	}
	if l.CPUSet != "" {
		add("cpuset.cpus", l.CPUSet)
	}
	if l.PIDs > 0 {
		add("pids.max", l.PIDs)
	}
	return items
}

func limitItemsV2(l flavor.Limits, swap bool) []item {
	var items []item
	add := func(file string, v any) { items = append(items, item{"lxc.cgroup2." + file, fmt.Sprint(v)}) }
	if l.MemoryBytes > 0 {
		add("memory.max", l.MemoryBytes)
		if swap { // swap alone
			add("memory.swap.max", l.SwapBytes)
		}
	}
	if l.CPUShares > 0 {
		add("cpu.weight", cpuWeight(l.CPUShares))
	}
	if l.CPUPeriodUS > 0 && l.CPUQuotaUS > 0 {
		add("cpu.max", fmt.Sprintf("%d %d", l.CPUQuotaUS, l.CPUPeriodUS))
	}
	if l.CPUSet != "" {
		add("cpuset.cpus", l.CPUSet)
	}
	if l.PIDs > 0 {
		add("pids.max", l.PIDs)
	}
	return items
}

// deviceItems allow what every system container needs and nothing else. Inside a
// user namespace nobody can make device nodes anyhow; this holds for nodes that
// got there by a bind mount, and for privileged guests.
func deviceItems(lay layout) []item {
	prefix := "lxc.cgroup.devices."
	if lay == layoutV2 {
		prefix = "lxc.cgroup2.devices."
	}
	items := []item{{prefix + "deny", "a"}}
	for _, rule := range []string{
		"c *:* m", "b *:* m", // making a node is harmless, opening it is what counts
		"c 1:3 rwm",    // /dev/null
		"c 1:5 rwm",    // /dev/zero
		"c 1:7 rwm",    // /dev/full
		"c 1:8 rwm",    // /dev/random
		"c 1:9 rwm",    // /dev/urandom
		"c 5:0 rwm",    // /dev/tty
		"c 5:1 rwm",    // /dev/console
		"c 5:2 rwm",    // /dev/ptmx
		"c 136:* rwm",  // /dev/pts
		"c 10:200 rwm", // /dev/net/tun
		"c 10:229 rwm", // /dev/fuse
	} {
		items = append(items, item{prefix + "allow", rule})
	}
	return items
}
