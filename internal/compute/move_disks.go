package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/internal/transfer"
)

// Ephemeral disks move with their server, as with every driver of nova's that keeps them on the host: their trees go along with
// the root disk's. A larger flavor makes the flavor's own disk larger, or adds it where there was none; disks
// that the user cut keep their size. None becomes smaller but by a revert.

// mappings reads an instance's block device mappings, if one of the flavors has ephemeral disks for them to cut.
func (m *Manager) mappings(ctx context.Context, uuid string, flavors ...*object.Flavor) ([]*object.BlockDeviceMapping, error) {
	if !slices.ContainsFunc(flavors, func(f *object.Flavor) bool { return f != nil && f.EphemeralGB > 0 }) {
		return nil, nil
	}
	return m.Conductor.BDMs(ctx, uuid)
}

// flavorsDisk is the mapping that the API makes of a flavor's ephemeral disk when the user asks for none
// (nova/compute/api.py:_get_flavor_defined_bdms): the only one, and as large. nil: there is none, or the user's.
func flavorsDisk(bdms []*object.BlockDeviceMapping, f *object.Flavor) *object.BlockDeviceMapping {
	ephemerals, _ := blankDisks(bdms)
	if len(ephemerals) != 1 || ephemerals[0].VolumeSize == nil || *ephemerals[0].VolumeSize != f.EphemeralGB {
		return nil
	}
	return ephemerals[0]
}

// resizedMappings are the mappings of an instance that goes from one flavor to another: that of the flavor's own disk
// has the other flavor's size, or is not there any more.
func resizedMappings(bdms []*object.BlockDeviceMapping, from, to *object.Flavor) []*object.BlockDeviceMapping {
	own := flavorsDisk(bdms, from)
	if own == nil {
		return bdms
	}
	resized := *own
	resized.VolumeSize = &to.EphemeralGB
	bdms = slices.Clone(bdms)
	at := slices.Index(bdms, own)
	if to.EphemeralGB == 0 {
		return slices.Delete(bdms, at, at+1)
	}
	bdms[at] = &resized
	return bdms
}

// saveSwap gives the mapping of an instance's swap the size of its flavor, as nova-compute does since 2023.1
// (nova/compute/manager.py:_update_bdm_for_swap_to_finish_resize): a rebuild goes by it. Without a mapping the swap is the
// flavor's, so none is made for a flavor that brings the first.
func (m *Manager) saveSwap(ctx context.Context, uuid string, from, to *object.Flavor) error {
	if from == nil || from.Swap == to.Swap {
		return nil
	}
	bdms, err := m.Conductor.BDMs(ctx, uuid)
	if err != nil {
		return err
	}
	_, swaps := blankDisks(bdms)
	for _, b := range swaps {
		if to.Swap == 0 {
			err = m.Conductor.DestroyBDM(ctx, b)
		} else {
			err = m.Conductor.SaveBDM(ctx, b, map[string]any{"volume_size": to.Swap})
		}
		if err != nil {
			return fmt.Errorf("store the size of the swap: %w", err)
		}
	}
	return nil
}

// saveMapping stores the size that the flavor's own disk has by now: a rebuild goes by it.
func (m *Manager) saveMapping(ctx context.Context, uuid string, from, to *object.Flavor) error {
	if from.EphemeralGB == to.EphemeralGB {
		return nil
	}
	bdms, err := m.mappings(ctx, uuid, from, to)
	if err != nil {
		return err
	}
	own := flavorsDisk(bdms, from)
	if own == nil {
		return nil
	}
	return m.Conductor.SaveBDM(ctx, own, map[string]any{"volume_size": to.EphemeralGB})
}

// grownFrom is the flavor that a resize which is reverted came to: what it made larger is made smaller. One that
// made nothing larger has nothing to undo.
func grownFrom(inst *object.Instance, old *object.Flavor) *object.Flavor {
	if came := inst.NewFlavor; came != nil && came.EphemeralGB > old.EphemeralGB {
		return came
	}
	return old
}

// checkDisks refuses a flavor under which an ephemeral disk would be smaller
// (nova/virt/libvirt/driver.py:migrate_disk_and_power_off).
func (m *Manager) checkDisks(ctx context.Context, mv *move) error {
	old, wanted := mv.inst.Flavor, mv.flavor
	bdms, err := m.mappings(ctx, mv.inst.UUID, old, wanted)
	if err != nil {
		return err
	}
	have, err := m.ephemeralDisks(old, bdms)
	if err != nil {
		return err
	}
	want, err := m.ephemeralDisks(wanted, resizedMappings(bdms, old, wanted))
	if err != nil { // the disks that there are exceed the flavor
		return &rolledBack{exception.ResizeError(err.Error() + "; disks cannot be made smaller")}
	}
	for i, d := range have {
		if i >= len(want) || want[i].SizeGB < d.SizeGB {
			return &rolledBack{exception.ResizeError(fmt.Sprintf("the ephemeral disk of %d GB cannot be made smaller", d.SizeGB))}
		}
	}
	return nil
}

// disksUnder are the ephemeral disks of an instance that goes from one flavor to another: those that it has keep their format.
func (m *Manager) disksUnder(ctx context.Context, uuid string, from, to *object.Flavor, have []ephemeral.Disk) ([]ephemeral.Disk, error) {
	bdms, err := m.mappings(ctx, uuid, from, to)
	if err != nil {
		return nil, err
	}
	want, err := m.ephemeralDisks(to, resizedMappings(bdms, from, to))
	if err != nil {
		return nil, err
	}
	for i := range want {
		if i < len(have) {
			want[i].Name, want[i].Format = have[i].Name, have[i].Format
		}
	}
	return want, nil
}

// arrivingDisks are the ephemeral disks that a move makes here: those that the source offers, as large as the new flavor
// wants them, and perhaps one more.
func (m *Manager) arrivingDisks(ctx context.Context, mv *move, offered []ephemeral.Disk) ([]ephemeral.Disk, error) {
	had, err := m.disksUnder(ctx, mv.inst.UUID, mv.inst.Flavor, mv.inst.Flavor, nil)
	if err != nil {
		return nil, err
	}
	disks, err := m.disksUnder(ctx, mv.inst.UUID, mv.inst.Flavor, mv.flavor, offered)
	if err != nil {
		return nil, err
	}
	if len(offered) != len(had) || len(disks) < len(offered) {
		return nil, fmt.Errorf("the source offers %d ephemeral disks of a server with %d", len(offered), len(had))
	}
	for i, d := range offered {
		if disks[i].SizeGB < d.SizeGB {
			return nil, fmt.Errorf("the source offers a disk of %d GB in the place of one of %d GB", d.SizeGB, disks[i].SizeGB)
		}
	}
	return disks, nil
}

// diskTrees are what a source offers of an instance's ephemeral disks.
func (m *Manager) diskTrees(rec record) []transfer.Tree {
	trees := make([]transfer.Tree, 0, len(rec.Ephemeral))
	for i := range rec.Ephemeral {
		trees = append(trees, transfer.Tree{Open: func(ctx context.Context, _ bool) (string, func() error, error) {
			paths, err := m.mountedDisks(ctx, rec.UUID, i+1)
			if err != nil {
				return "", nil, err
			}
			return paths[i], func() error { return nil }, nil
		}})
	}
	return trees
}

// mountedDisks mounts an instance's ephemeral disks and gives the paths of the first of them.
func (m *Manager) mountedDisks(ctx context.Context, uuid string, first int) ([]string, error) {
	if first == 0 {
		return nil, nil
	}
	paths, err := m.Ephemeral.Mount(ctx, uuid)
	if err == nil && len(paths) < first {
		err = fmt.Errorf("of %d ephemeral disks %d are here: %w", first, len(paths), storage.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return paths[:first], nil
}

// usedOnDisks is what the content of an instance's ephemeral disks takes.
func (m *Manager) usedOnDisks(ctx context.Context, uuid string) (sum uint64, err error) {
	used, err := m.Ephemeral.Used(ctx, uuid)
	for _, bytes := range used {
		sum += bytes
	}
	return sum, err
}

// describeHere tells the driver of an instance whose disks are on this host, and mounts them.
func (m *Manager) describeHere(ctx context.Context, inst *object.Instance, rec record, limits flavor.Limits) error {
	rootfs, err := m.Roots.Mount(ctx, rec.Root)
	if err != nil {
		return fmt.Errorf("mount root disk: %w", err)
	}
	binds, err := m.makeDisks(ctx, inst.UUID, rec.Root.IDs, rec.Ephemeral)
	if err != nil {
		return err
	}
	binds = append(m.driveBinds(inst, inst.System("image_"+metadata.ImageConfigDrive)), binds...)
	return m.Driver.Create(ctx, m.specOf(inst, rec, limits, binds), rootfs)
}

// growDisks makes an instance's ephemeral disks as large as its new flavor has them; the record follows when they are. Only
// one that is new to the guest stops it: what a guest sees of the host is settled when it starts.
func (m *Manager) growDisks(ctx context.Context, inst *object.Instance, old, wanted *object.Flavor, limits flavor.Limits) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return errors.Join(err, driver.ErrNotFound)
	}
	want, err := m.disksUnder(ctx, inst.UUID, old, wanted, rec.Ephemeral)
	if err != nil || slices.Equal(want, rec.Ephemeral) {
		return err
	}
	for i, d := range rec.Ephemeral {
		if i >= len(want) || want[i].SizeGB == d.SizeGB {
			continue
		}
		err := m.growStopping(ctx, inst, rec, func() error { return m.Ephemeral.Grow(ctx, inst.UUID, d.Name, want[i].SizeGB) })
		if err != nil {
			return fmt.Errorf("grow ephemeral disk: %w", err)
		}
	}
	if len(want) > len(rec.Ephemeral) {
		return m.addDisks(ctx, inst, rec, want, limits)
	}
	rec.Ephemeral = want
	return m.saveRecord(rec)
}

// addDisks gives an instance that has no ephemeral disks the first. Where that fails it is again as it was. The record
// comes last, so that a start of the agent that finds the old one begins anew.
func (m *Manager) addDisks(ctx context.Context, inst *object.Instance, rec record, want []ephemeral.Disk, limits flavor.Limits) error {
	reqctx.Log(ctx).Info("stopping the guest to give it an ephemeral disk")
	if err := m.powerOff(ctx, inst.UUID, m.shutdownTimeout(inst)); err != nil {
		return err
	}
	with := rec
	with.Ephemeral = want
	err := m.restartHere(ctx, inst, with, limits)
	if err == nil {
		err = m.saveRecord(with)
	}
	if err == nil || leaving(ctx, err) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	undo := m.powerOff(ctx, inst.UUID, 0)
	if undo == nil {
		undo = m.Ephemeral.Delete(ctx, inst.UUID)
	}
	if undo == nil {
		undo = m.restartHere(ctx, inst, rec, limits)
	}
	if undo != nil {
		undo = fmt.Errorf("take the ephemeral disk away again: %w", undo)
	}
	return errors.Join(err, undo)
}

// restartHere tells the driver anew of an instance that is off, and starts it if it ran before.
func (m *Manager) restartHere(ctx context.Context, inst *object.Instance, rec record, limits flavor.Limits) error {
	return m.orOff(ctx, inst.UUID, func() error {
		if err := m.describeHere(ctx, inst, rec, limits); err != nil {
			return err
		}
		if stateBefore(inst) == object.VMStateStopped {
			return m.unmountDisks(ctx, inst.UUID)
		}
		return m.runRecorded(ctx, rec)
	})
}

// checkShrink looks whether what a resize added to ephemeral disks can be taken away again.
func (m *Manager) checkShrink(ctx context.Context, rec record, want []ephemeral.Disk) error {
	if slices.Equal(want, rec.Ephemeral) {
		return nil
	}
	used, err := m.Ephemeral.Used(ctx, rec.UUID)
	if err != nil {
		return err
	}
	for i, d := range want[:min(len(want), len(used))] {
		if d.SizeGB == rec.Ephemeral[i].SizeGB {
			continue
		}
		if err := checkRoom("the ephemeral disk", used[i], d.SizeGB); err != nil {
			return err
		}
	}
	return nil
}

// checkRoom refuses to revert to a disk that is too small for what is on it by now.
func checkRoom(what string, used uint64, sizeGB int) error {
	// A file system cannot be filled to the last byte while it is made smaller.
	if room := uint64(sizeGB) << 30; used > room-room/16 { //nolint:gosec // sizes are positive
		return exception.ResizeError(fmt.Sprintf("%s holds %d MB by now, which is too much for the old size of %d GB", what, used>>20, sizeGB))
	}
	return nil
}

// shrinkDisks takes away what a resize that is reverted added to the ephemeral disks. The guest is off.
func (m *Manager) shrinkDisks(ctx context.Context, inst *object.Instance, want []ephemeral.Disk, limits flavor.Limits) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil || !ok {
		return errors.Join(err, driver.ErrNotFound)
	}
	if slices.Equal(want, rec.Ephemeral) {
		return nil
	}
	if len(want) == 0 { // it was added
		if err := m.Ephemeral.Delete(ctx, inst.UUID); err != nil {
			return fmt.Errorf("delete ephemeral disks: %w", err)
		}
	}
	for _, d := range want {
		if err := m.Ephemeral.Shrink(ctx, inst.UUID, d.Name, d.SizeGB); err != nil {
			return fmt.Errorf("shrink ephemeral disk: %w", err)
		}
	}
	rec.Ephemeral = want
	if len(want) == 0 {
		err := m.describeHere(ctx, inst, rec, limits)
		if err := errors.Join(err, m.unmountDisks(ctx, inst.UUID)); err != nil {
			return err
		}
	}
	return m.saveRecord(rec)
}
