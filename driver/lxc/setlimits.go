package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
)

var _ driver.LimitSetter = (*Driver)(nil)

// SetLimits implements driver.LimitSetter. The record goes first: a start after a crash has the new limits.
func (d *Driver) SetLimits(ctx context.Context, uuid string, l flavor.Limits) error {
	rec, err := d.load(uuid)
	if err != nil {
		return err
	}
	was := rec.Spec.Limits
	rec.Spec.Limits = l
	if err := d.validate(rec.Spec, rec.RootFS); err != nil {
		return fmt.Errorf("change limits of instance %s: %w", uuid, err)
	}
	if err := d.save(rec); err != nil {
		return err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return fmt.Errorf("change limits of instance %s: %w", uuid, err)
	}
	if !g.running() {
		return nil
	}
	if err := d.cgroups.change(payload(rec.Spec.Name), was, l, d.swapAccount()); err != nil {
		return fmt.Errorf("change limits of instance %s: %w: %w", uuid, driver.ErrNeedsRestart, err)
	}
	return nil
}

// errOtherConfiguration: what differs is no number in a control group.
var errOtherConfiguration = errors.New("they differ in more than sizes and shares")

// change gives a group that is in use other limits. Memory goes first, since it alone depends on
// what the guest does.
func (c cgroups) change(group string, was, l flavor.Limits, swap bool) error {
	if was.Privileged != l.Privileged || was.Nested != l.Nested || was.Disk != l.Disk || was.CPUSet != "" && l.CPUSet == "" {
		return errOtherConfiguration
	}
	write := func(file, value string) error {
		controller, _, _ := strings.Cut(file, ".")
		return os.WriteFile(c.file(controller, group, file), []byte(value), 0)
	}
	if c.layout == layoutV2 {
		if err := c.makeRoom(group, l); err != nil {
			return err
		}
	}
	for _, i := range c.ordered(group, limitItems(l, c.layout, swap)) {
		file := strings.TrimPrefix(strings.TrimPrefix(i.key, "lxc.cgroup2."), "lxc.cgroup.")
		if err := write(file, i.value); err != nil {
			return err
		}
	}
	if was.CPUQuotaUS > 0 && l.CPUQuotaUS <= 0 {
		if c.layout == layoutV2 {
			return write("cpu.max", "max")
		}
		return write("cpu.cfs_quota_us", "-1")
	}
	return nil
}

// Files of cgroup v1 of which the first must never be above the second.
const (
	memoryLimitV1 = "lxc.cgroup.memory.limit_in_bytes"
	memswLimitV1  = "lxc.cgroup.memory.memsw.limit_in_bytes"
)

// ordered puts the limit of memory and swap together first if it grows.
func (c cgroups) ordered(group string, items []item) []item {
	if len(items) < 2 || items[0].key != memoryLimitV1 || items[1].key != memswLimitV1 {
		return items
	}
	now, err := os.ReadFile(c.file("memory", group, "memory.memsw.limit_in_bytes"))
	if err != nil {
		return items
	}
	limit, err := strconv.ParseUint(strings.TrimSpace(string(now)), 10, 64)
	wanted, _ := strconv.ParseUint(items[0].value, 10, 64)
	if err == nil && wanted > limit {
		items[0], items[1] = items[1], items[0]
	}
	return items
}

// makeRoom asks the kernel to reclaim what is above the new limit. Version 2 takes any limit
// and kills what does not fit, which version 1 refuses.
func (c cgroups) makeRoom(group string, l flavor.Limits) error {
	if l.MemoryBytes <= 0 {
		return nil
	}
	used := func() int64 {
		b, err := os.ReadFile(c.file(unified, group, "memory.current"))
		if err != nil {
			return 0
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return n
	}
	if above := used() - l.MemoryBytes; above > 0 {
		// Best effort: the kernel may have no such file (before 5.19).
		_ = os.WriteFile(c.file(unified, group, "memory.reclaim"), []byte(strconv.FormatInt(above, 10)), 0)
		if used() > l.MemoryBytes {
			return errors.New("the guest uses more memory than it is to have")
		}
	}
	return nil
}
