package lxc

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/driver"
)

var _ driver.Inspector = (*Driver)(nil)

// Usage implements driver.Inspector with the counters of the guest's cgroup.
func (d *Driver) Usage(ctx context.Context, uuid string) (driver.Usage, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return driver.Usage{}, err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return driver.Usage{}, err
	}
	if g.init == 0 {
		return driver.Usage{}, fmt.Errorf("usage of instance %s: %w", uuid, driver.ErrNotRunning)
	}
	group := payload(rec.Spec.Name)
	var u driver.Usage
	if d.cgroups.layout == layoutV2 {
		u = d.cgroups.usageV2(group)
	} else {
		u = d.cgroups.usageV1(group)
	}
	pids, err := d.cgroups.procs(group)
	if err != nil {
		return driver.Usage{}, fmt.Errorf("usage of instance %s: %w", uuid, err)
	}
	u.Processes = len(pids)
	return u, nil
}

func (c cgroups) usageV1(group string) driver.Usage {
	stat := keyValues(c.text("memory", group, "memory.stat"))
	u := driver.Usage{
		CPUTime:     time.Duration(c.number("cpuacct", group, "cpuacct.usage")),
		MemoryCache: stat["total_cache"],
		SwapUsed:    stat["total_swap"],
	}
	u.MemoryUsed = max(c.number("memory", group, "memory.usage_in_bytes")-u.MemoryCache, 0)
	amount := blkioLines(c.text("blkio", group, "blkio.throttle.io_service_bytes_recursive"))
	requests := blkioLines(c.text("blkio", group, "blkio.throttle.io_serviced_recursive"))
	u.ReadBytes, u.WriteBytes = transferred(amount)
	u.ReadRequests, u.WriteRequests = transferred(requests)
	return u
}

func (c cgroups) usageV2(group string) driver.Usage {
	stat := keyValues(c.text(unified, group, "memory.stat"))
	u := driver.Usage{
		CPUTime:     time.Duration(keyValues(c.text(unified, group, "cpu.stat"))["usage_usec"]) * time.Microsecond,
		MemoryCache: stat["file"],
		SwapUsed:    c.number(unified, group, "memory.swap.current"),
	}
	u.MemoryUsed = max(c.number(unified, group, "memory.current")-u.MemoryCache, 0)
	amount, requests := ioStat(c.text(unified, group, "io.stat"))
	u.ReadBytes, u.WriteBytes = transferred(amount)
	u.ReadRequests, u.WriteRequests = transferred(requests)
	return u
}

// memoryFile is the name of a control file of memory, which both versions have.
func (c cgroups) memoryFile() string {
	if c.layout == layoutV2 {
		return "memory.current"
	}
	return "memory.usage_in_bytes"
}

// text reads a control file; one that the host does not have is empty.
func (c cgroups) text(controller, group, file string) string {
	b, err := os.ReadFile(c.file(controller, group, file))
	if err != nil {
		return ""
	}
	return string(b)
}

func (c cgroups) number(controller, group, file string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(c.text(controller, group, file)), 10, 64)
	return n
}

// keyValues reads lines of a word and a number.
func keyValues(text string) map[string]int64 {
	values := map[string]int64{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			values[f[0]], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return values
}

// transfer is what went from and to one block device.
type transfer struct{ read, write int64 }

// blkioLines reads a file of the v1 controller: "8:0 Read 4096", a line per device and direction.
func blkioLines(text string) map[string]transfer {
	devices := map[string]transfer{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.ParseInt(f[2], 10, 64)
		t := devices[f[0]]
		switch f[1] {
		case "Read":
			t.read = n
		case "Write":
			t.write = n
		}
		devices[f[0]] = t
	}
	return devices
}

// ioStat reads io.stat of cgroup v2: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …", a line per device.
func ioStat(text string) (amount, requests map[string]transfer) {
	amount, requests = map[string]transfer{}, map[string]transfer{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		values := map[string]int64{}
		for _, pair := range f[1:] {
			k, v, _ := strings.Cut(pair, "=")
			values[k], _ = strconv.ParseInt(v, 10, 64)
		}
		amount[f[0]] = transfer{values["rbytes"], values["wbytes"]}
		requests[f[0]] = transfer{values["rios"], values["wios"]}
	}
	return amount, requests
}

// loopMajor is the major number of loop devices.
const loopMajor = "7:"

// transferred adds up the devices. What a guest writes goes to the loop device of its root disk and, if
// the kernel still knows on whose behalf, once more to the disk below: the larger counts. What
// it reads comes from the disks alone, through the loop device or from its image.
func transferred(devices map[string]transfer) (read, write int64) {
	var loop, disk transfer
	for device, t := range devices {
		to := &disk
		if strings.HasPrefix(device, loopMajor) {
			to = &loop
		}
		to.read += t.read
		to.write += t.write
	}
	return max(disk.read, loop.read), max(disk.write, loop.write)
}
