package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// throttle is one bound of a device, under its names in cgroup v1 and v2.
type throttle struct {
	v1, v2 string
	value  int64
}

// throttles are the bounds of every disk of a guest; a total holds for each direction, as the
// kernel has no bound of both together.
func throttles(l flavor.DiskLimits) []throttle {
	var bounds []throttle
	add := func(v1, v2 string, specific, total int64) {
		if specific <= 0 {
			specific = total
		}
		if specific > 0 {
			bounds = append(bounds, throttle{"blkio.throttle." + v1 + "_device", v2, specific})
		}
	}
	add("read_bps", "rbps", l.ReadBytesSec, l.TotalBytesSec)
	add("write_bps", "wbps", l.WriteBytesSec, l.TotalBytesSec)
	add("read_iops", "riops", l.ReadIOPSSec, l.TotalIOPSSec)
	add("write_iops", "wiops", l.WriteIOPSSec, l.TotalIOPSSec)
	return bounds
}

// diskItems renders the throttles of a guest's disks.
func diskItems(l flavor.DiskLimits, lay layout, devices []storage.Device) []item {
	bounds := throttles(l)
	var items []item
	for _, d := range devices {
		line := []string{d.Number}
		for _, t := range bounds {
			value := strconv.FormatInt(t.value, 10)
			line = append(line, t.v2+"="+value)
			if lay != layoutV2 {
				items = append(items, item{"lxc.cgroup." + t.v1, d.Number + " " + value})
			}
		}
		if lay == layoutV2 && len(bounds) > 0 {
			items = append(items, item{"lxc.cgroup2.io.max", strings.Join(line, " ")})
		}
	}
	return items
}

// throttled finds the devices of a guest that is to be throttled, and says in the log, once a start, what
// its limits do not reach.
func (d *Driver) throttled(ctx context.Context, r record) ([]storage.Device, error) {
	if r.Spec.Limits.Disk == (flavor.DiskLimits{}) {
		return nil, nil
	}
	find := d.o.Disks
	if find == nil {
		find = func(context.Context, string) ([]storage.Device, error) { return mount.Devices(r.RootFS) }
	}
	devices, err := find(ctx, r.Spec.UUID)
	if err != nil {
		return nil, fmt.Errorf("find disks to throttle: %w", err)
	}
	warn := func(why string) {
		reqctx.Log(ctx).WithField("instance", r.Spec.UUID).Warning("quota:disk limits are not enforced " + why)
	}
	controller := "io"
	if d.cgroups.layout != layoutV2 {
		controller = "blkio"
	}
	shared := false
	for _, device := range devices {
		shared = shared || !device.Own
	}
	switch {
	case !d.cgroups.has(controller):
		warn("at all: the host's cgroups have no controller " + controller)
		return nil, nil
	case len(devices) == 0:
		warn("at all: the file system below the server's disks has no block device")
	case shared && d.cgroups.layout != layoutV2:
		warn("on what is written back later: the server's disks share a device with others, and cgroup v1 does not know whose data that is")
	}
	return devices, nil
}

// On cgroup v1 what a guest has written is written back in nobody's name, that is, in the root
// group's. A device that is the guest's own can be throttled there too. Such a limit outlives
// the guest's groups and the device's use: a file remembers it until it is taken back.

func (d *Driver) throttleFile(name string) string {
	return filepath.Join(d.containerDir(name), "throttled")
}

// holdWriteback limits what is written back to the guest's own devices.
func (d *Driver) holdWriteback(r record, devices []storage.Device) error {
	var own []string
	for _, device := range devices {
		if device.Own {
			own = append(own, device.Number)
		}
	}
	if len(own) == 0 || d.cgroups.layout == layoutV2 || !d.rootGroup() {
		return nil
	}
	// First the memory, then the deed.
	if err := writeFile(d.throttleFile(r.Spec.Name), []byte(strings.Join(own, "\n")+"\n"), false); err != nil {
		return err
	}
	for _, t := range throttles(r.Spec.Limits.Disk) {
		if !strings.HasPrefix(t.v2, "w") {
			continue
		}
		for _, number := range own {
			if err := d.writeRoot(t.v1, number, t.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// releaseWriteback takes back what holdWriteback did, before the device can be another's.
func (d *Driver) releaseWriteback(name string) error {
	file := d.throttleFile(name)
	numbers, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read throttled devices: %w", err)
	}
	for number := range strings.FieldsSeq(string(numbers)) {
		for _, t := range throttles(flavor.DiskLimits{WriteBytesSec: 1, WriteIOPSSec: 1}) {
			if err := d.writeRoot(t.v1, number, 0); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget throttled devices: %w", err)
	}
	return nil
}

// rootGroup tells whether liblxc's groups are below the real root of the hierarchy; only that has this file.
func (d *Driver) rootGroup() bool {
	_, err := os.Stat(d.cgroups.file("blkio", "", "cgroup.sane_behavior"))
	return err == nil
}

// writeRoot sets one bound of the root group; 0 removes it. A device that is gone has none.
func (d *Driver) writeRoot(file, number string, value int64) error {
	err := os.WriteFile(d.cgroups.file("blkio", "", file), []byte(number+" "+strconv.FormatInt(value, 10)), 0)
	if value == 0 && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("limit %s of %s: %w", file, number, err)
	}
	return nil
}
