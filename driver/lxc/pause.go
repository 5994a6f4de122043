package lxc

import (
	"context"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/driver"
)

// freezeTimeout bounds the freezer for callers whose context has no deadline.
const freezeTimeout = 10 * time.Second

// Pause implements driver.Driver. ErrTimeout: a process of the guest cannot be
// frozen (it sits in the kernel), and the guest runs on.
func (d *Driver) Pause(ctx context.Context, uuid string) error {
	return d.freeze(ctx, uuid, true, driver.PowerStatePaused)
}

// Unpause implements driver.Driver.
func (d *Driver) Unpause(ctx context.Context, uuid string) error {
	return d.freeze(ctx, uuid, false, driver.PowerStateRunning)
}

func (d *Driver) freeze(ctx context.Context, uuid string, on bool, state driver.PowerState) error {
	rec, _, err := d.runs(ctx, uuid, verb(on))
	if err != nil {
		return err
	}
	was := d.cgroups.frozen(payload(rec.Spec.Name))
	err = d.freezeGroup(ctx, rec.Spec.Name, on)
	if err == nil {
		err = d.endSuspension(uuid)
	}
	if err != nil {
		return fmt.Errorf("%s instance %s: %w", verb(on), uuid, err)
	}
	if was != on {
		d.changed(rec, state)
	}
	return nil
}

// freezeGroup freezes or thaws a guest's processes; those that are already stay so.
func (d *Driver) freezeGroup(ctx context.Context, name string, on bool) error {
	if d.cgroups.frozen(payload(name)) == on {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	return d.cgroups.freeze(ctx, payload(name), on)
}

func verb(freeze bool) string {
	if freeze {
		return "pause"
	}
	return "unpause"
}
