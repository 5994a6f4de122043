package compute

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// resizeHere gives an instance of this host other limits and larger disks. Its guest is not
// stopped, unless it cannot be given the limits while it runs, or gets an ephemeral disk
// where it had none, or other directories of the host.
func (m *Manager) resizeHere(ctx context.Context, inst *object.Instance, old, wanted *object.Flavor, limits flavor.Limits) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("resize here: %w", driver.ErrNotFound)
	}
	if rec.Root.SizeGB != limits.RootGB {
		if err := m.growRoot(ctx, inst, rec, limits.RootGB); err != nil {
			return err
		}
	}
	if err := m.growDisks(ctx, inst, old, wanted, limits); err != nil {
		return err
	}
	if err := m.changeShares(ctx, inst, wanted, limits); err != nil {
		return err
	}
	if err := m.setLimits(ctx, inst, limits); err != nil {
		return err
	}
	return m.noteFlavor(inst.UUID, wanted.Name)
}

// growRoot makes the root disk larger; the record follows when it is.
func (m *Manager) growRoot(ctx context.Context, inst *object.Instance, rec record, sizeGB int) error {
	if sizeGB == 0 {
		return fmt.Errorf("%w: the root disk of %d GB cannot lose its limit", storage.ErrUnsupported, rec.Root.SizeGB)
	}
	err := m.growStopping(ctx, inst, rec, func() error { return m.Roots.Grow(ctx, rec.UUID, sizeGB) })
	if err != nil {
		return fmt.Errorf("grow root disk: %w", err)
	}
	rec.Root.SizeGB = sizeGB
	return m.saveRecord(rec)
}

// growStopping makes a disk larger, and lets the guest mount it anew if it cannot become so while it is mounted.
func (m *Manager) growStopping(ctx context.Context, inst *object.Instance, rec record, grow func() error) error {
	err := grow()
	if !errors.Is(err, storage.ErrBusy) {
		return err
	}
	reqctx.Log(ctx).WithError(err).Info("stopping the guest to make its disk larger")
	if err := m.powerOff(ctx, inst.UUID, m.shutdownTimeout(inst)); err != nil {
		return err
	}
	return m.runRecorded(ctx, rec)
}

// setLimits applies limits to a guest, running or not.
func (m *Manager) setLimits(ctx context.Context, inst *object.Instance, limits flavor.Limits) error {
	setter, ok := m.Driver.(driver.LimitSetter)
	if !ok {
		return fmt.Errorf("change limits: %w", driver.ErrUnsupported)
	}
	err := setter.SetLimits(ctx, inst.UUID, limits)
	if !errors.Is(err, driver.ErrNeedsRestart) {
		return err
	}
	reqctx.Log(ctx).WithError(err).Info("stopping the guest to give it its new limits")
	if err := m.powerOff(ctx, inst.UUID, m.shutdownTimeout(inst)); err != nil {
		return err
	}
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return errors.Join(err, driver.ErrNotFound)
	}
	return m.runRecorded(ctx, rec)
}

// shrinkRoot makes the root disk as small as it was before a resize that is reverted. The guest is off.
func (m *Manager) shrinkRoot(ctx context.Context, rec record, sizeGB int) error {
	s, ok := m.Roots.(storage.Shrinker)
	if !ok {
		return fmt.Errorf("%w: root disks of back end %s do not shrink", storage.ErrUnsupported, m.Roots.Name())
	}
	if err := s.Shrink(ctx, rec.UUID, sizeGB); err != nil {
		return fmt.Errorf("shrink root disk: %w", err)
	}
	rec.Root.SizeGB = sizeGB
	return m.saveRecord(rec)
}
