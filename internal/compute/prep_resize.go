package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// prepResize claims what an instance needs here and, if it comes from another host, copies its
// disks while its guest runs there (nova/compute/manager.py:prep_resize). Whatever fails, the
// guest has noticed nothing, and another host may be tried.
func (m *Manager) prepResize(ctx context.Context, mv *move) error {
	if err := m.loadMove(ctx, mv); err != nil {
		return err
	}
	if mv.resumed {
		if wanted, err := m.prepWanted(ctx, mv); err != nil || !wanted {
			return err
		}
	}
	m.notifyExists(ctx, mv.inst)
	m.Notify.Instance(ctx, notify.Event{Action: "resize_prep", Phase: "start", Instance: mv.inst, NewFlavor: mv.flavor})
	err := m.prepare(ctx, mv)
	if errors.Is(err, errLeaving) {
		return err
	}
	if err != nil {
		if errors.Is(context.Cause(ctx), errDeleted) {
			err = errDeleted
		}
		err = m.prepFailed(context.WithoutCancel(ctx), mv, novaError(mv.inst, err))
	}
	m.Notify.Instance(context.WithoutCancel(ctx), notify.Event{Action: "resize_prep", Phase: "end", Instance: mv.inst, NewFlavor: mv.flavor})
	return err
}

// prepWanted tells whether a prep_resize that was interrupted is still wanted. If not, what it left is removed.
func (m *Manager) prepWanted(ctx context.Context, mv *move) (bool, error) {
	err := m.Conductor.RefreshInstance(ctx, mv.inst)
	if err != nil && !isGone(err) {
		return false, err
	}
	if err == nil && mv.inst.Host == mv.migration.SourceCompute && mv.inst.TaskState == object.TaskStateResizePrep {
		return true, nil
	}
	reqctx.Log(ctx).Info("an interrupted move is not wanted any more")
	m.Tracker.DropMove(ctx, mv.migration.UUID)
	return false, m.abandonIncoming(ctx, mv.inst.UUID, mv.migration.UUID, err)
}

func (m *Manager) prepare(ctx context.Context, mv *move) error {
	if err := m.checkMove(ctx, mv); err != nil {
		return err
	}
	if err := m.claimMove(ctx, mv); err != nil {
		return err
	}
	if !m.same(mv) {
		if err := m.fetchRunning(ctx, mv); err != nil {
			return err
		}
	}
	return m.castMove(ctx, mv.migration.SourceCompute, true, "resize_instance", mv, nil, "image", "flavor", "clean_shutdown", "request_spec")
}

// checkMove refuses what cannot be done here.
func (m *Manager) checkMove(ctx context.Context, mv *move) error {
	old, wanted := mv.inst.Flavor, mv.flavor
	if old == nil {
		return errors.New("the instance has no flavor")
	}
	if m.same(mv) && old.ID == wanted.ID {
		return exception.UnableToMigrateToSelf(mv.inst.UUID, m.opts.Host)
	}
	limits, err := m.limitsOf(ctx, mv.inst.UUID, wanted)
	if err != nil {
		return err
	}
	before, err := m.limitsOf(ctx, mv.inst.UUID, old)
	if err != nil {
		return err
	}
	if err := m.checkMovedPool(mv); err != nil {
		return err
	}
	if wanted.RootGB < old.RootGB || limits.RootGB > 0 && (before.RootGB == 0 || limits.RootGB < before.RootGB) {
		return &rolledBack{exception.ResizeError(fmt.Sprintf("the root disk of %d GB cannot be made smaller", before.RootGB))}
	}
	image, _, err := m.Images.Get(ctx, mv.image.ID) // one that is not here yet is looked at when it is
	if err != nil {
		return err
	}
	if err := m.checkMovedImage(mv, image.Metadata, limits); err != nil {
		return err
	}
	if err := m.checkShares(mv.inst.UUID, wanted); err != nil {
		return err
	}
	return m.checkDisks(ctx, mv)
}

// checkMovedImage refuses a resize to a flavor that the server's image cannot work with. The message has only
// the properties that nova knows; the instance has them all.
func (m *Manager) checkMovedImage(mv *move, metadata imagesync.Metadata, limits flavor.Limits) error {
	r := glanceimage.Requirements{
		ImageID: mv.image.ID, Property: func(key string) string { return mv.inst.System("image_" + key) }, Metadata: metadata,
	}
	err := r.Check(mv.flavor, limits, m.opts.Cgroups)
	if exception.Is(err, "ImageUnacceptable") {
		return &rolledBack{exception.ResizeError(err.Error())}
	}
	return err
}

// claimMove stores that the instance is about to come here (nova/compute/resource_tracker.py:resize_claim).
func (m *Manager) claimMove(ctx context.Context, mv *move) error {
	system := maps.Clone(mv.inst.SystemMetadata)
	if _, kept := system[oldVMState]; !kept || !mv.resumed {
		before := mv.inst.VMState
		system[oldVMState] = &before
	}
	changes := flavors(mv.inst.Flavor, mv.inst.OldFlavor, mv.flavor)
	changes["system_metadata"] = system
	if err := m.Conductor.SaveInstance(ctx, mv.inst, changes); err != nil {
		return err
	}
	if err := m.Tracker.ClaimMove(ctx, mv.inst, mv.flavor, mv.migration.UUID); err != nil {
		return err
	}
	destination := m.Tracker.Destination()
	destination["status"] = migrationPreMigrating
	if err := m.Conductor.SaveMigration(ctx, mv.migration, destination); err != nil {
		return err
	}
	return m.saveMigrationContext(ctx, mv)
}

// saveMigrationContext links the instance with its migration: by it the API finds the hosts to which
// it sends Neutron's events. Containers have no NUMA or PCI placement to put there.
func (m *Manager) saveMigrationContext(ctx context.Context, mv *move) error {
	c := &object.MigrationContext{
		Header:       object.New("MigrationContext", m.Release.ObjectVersion("MigrationContext")),
		InstanceUUID: mv.inst.UUID, MigrationID: mv.migration.ID,
	}
	err := object.Mark(c, "instance_uuid", "migration_id", "new_numa_topology", "old_numa_topology", "new_pci_devices", "old_pci_devices",
		"new_pci_requests", "old_pci_requests", "new_resources", "old_resources")
	if err != nil {
		return err
	}
	return m.Conductor.SaveInstance(ctx, mv.inst, map[string]any{"migration_context": c})
}

// prepFailed takes back what a prep_resize did, and gives the move to the next host if there is one
// (nova/compute/manager.py:_reschedule_resize_or_reraise).
func (m *Manager) prepFailed(ctx context.Context, mv *move, cause error) error {
	log := reqctx.Log(ctx).WithError(cause)
	m.Tracker.DropMove(ctx, mv.migration.UUID)
	if err := m.abandonIncoming(ctx, mv.inst.UUID, mv.migration.UUID, cause); err != nil {
		log.WithField("cleanup_error", err).Error("root disk that was on its way here not removed; the next start tries again")
	}
	if isGone(cause) {
		m.dropAllocation(ctx, mv)
		return cause
	}
	if err := m.Conductor.DropMigrationContext(ctx, mv.inst); err != nil {
		log.WithField("save_error", err).Warning("migration context not dropped")
	}
	m.revertAllocation(ctx, mv)
	if _, rolled := errors.AsType[*rolledBack](cause); !rolled {
		err := m.rescheduleMove(ctx, mv, cause)
		if err == nil {
			log.Warning("move rescheduled to another host")
			m.Notify.Instance(ctx, notify.Event{Action: "resize", Phase: "error", Instance: mv.inst, Err: cause})
			return nil
		}
		log.WithField("reschedule_error", err).Warning("move not rescheduled")
		cause = &rolledBack{cause} // the guest was not touched
	}
	return m.failMove(ctx, mv, cause)
}

// errNoAlternate: the request names no other host, or the user chose this one.
var errNoAlternate = errors.New("there is no other host to try")

// rescheduleMove hands the move back to the conductor. Its migration stays as it is: the conductor goes on with it.
func (m *Manager) rescheduleMove(ctx context.Context, mv *move, cause error) error {
	raw, ok := mv.filters["retry"]
	var retry map[string]json.RawMessage
	if !ok || string(raw) == "null" || len(mv.hosts) == 0 || json.Unmarshal(raw, &retry) != nil || len(retry) == 0 {
		return errNoAlternate
	}
	retry["exc"], retry["exc_reason"] = encode([]string{exception.Traceback(cause)}), encode(cause.Error())
	filters := maps.Clone(mv.filters)
	filters["retry"] = encode(retry)
	if err := m.Conductor.SaveInstance(ctx, mv.inst, map[string]any{"task_state": object.TaskStateResizePrep}); err != nil {
		return err
	}
	args := map[string]any{
		"instance": mv.inst, "scheduler_hint": map[string]any{"filter_properties": filters}, "live": false, "rebuild": false,
		"flavor": mv.flavor, "block_migration": nil, "disk_over_commit": nil, "reservations": nil,
		"clean_shutdown": mv.clean, "request_spec": mv.args["request_spec"], "host_list": mv.hosts,
	}
	ctx, cancel := context.WithTimeout(ctx, castTimeout)
	defer cancel()
	return m.Conductor.MigrateServer(ctx, args)
}
