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
	rec, err := d.load(uuid)
	if err != nil {
		return err
	}
	g, err := d.settled(ctx, rec.Spec.Name)
	if err != nil {
		return err
	}
	if !g.running() || g.init == 0 {
		return fmt.Errorf("%s instance %s: %w", verb(on), uuid, driver.ErrNotRunning)
	}
	group := payload(rec.Spec.Name)
	if d.cgroups.frozen(group) == on {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if err := d.cgroups.freeze(ctx, group, on); err != nil {
		return fmt.Errorf("%s instance %s: %w", verb(on), uuid, err)
	}
	d.changed(rec, state)
	return nil
}

func verb(freeze bool) string {
	if freeze {
		return "pause"
	}
	return "unpause"
}
