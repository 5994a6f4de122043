package compute

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// evacuation is a rebuild of an instance whose host is down, on this one. No disk is shared, so the
// server begins anew from its image; id, ports and addresses stay.
type evacuation struct {
	*rebuildRequest
	m       *Manager
	spawn   *spawn
	claimed bool // this host has something of it: a failure is more than a refusal
}

// evacuate rebuilds an instance of another host here (nova/compute/manager.py:rebuild_instance with recreate).
func (m *Manager) evacuate(ctx context.Context, r *rebuildRequest) error {
	e := &evacuation{rebuildRequest: r, m: m}
	if err := e.run(ctx); err != nil {
		if leaving(ctx, err) {
			return err // the next start takes it up
		}
		return e.failed(ctx, err)
	}
	reqctx.Log(ctx).Info("instance evacuated to this host")
	return nil
}

func (e *evacuation) run(ctx context.Context) error {
	m, inst := e.m, e.Instance
	if e.Migration == nil {
		return errors.New("an evacuation without a migration")
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "info_cache", "metadata", "system_metadata", "trusted_certs"); err != nil {
		return err
	}
	e.stopped = inst.VMState == object.VMStateStopped || e.TargetState == object.VMStateStopped
	if err := e.claim(ctx); err != nil {
		return err
	}
	m.notifyExists(ctx, inst)
	m.Notify.Instance(ctx, notify.Event{Action: "rebuild", Phase: "start", Instance: inst})
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(driver.PowerStateNoState), "task_state": object.TaskStateRebuilding},
		conductor.ExpectTask(object.TaskStateRebuilding))
	if err != nil {
		return err
	}
	if e.image, err = m.imageOf(ctx, inst.ImageRef); err != nil {
		return err
	}
	if e.BDMs, err = m.Conductor.BDMs(ctx, inst.UUID); err != nil {
		return err
	}
	password := e.NewPassword.Reveal()
	e.spawn = newSpawn(m, &buildRequest{
		Instance: inst, Image: e.image, BDMs: e.BDMs, AccelUUIDs: e.AccelUUIDs, AdminPassword: &password, InjectedFiles: e.InjectedFiles,
	})
	if err := m.checkBuild(e.spawn.r); err != nil {
		return err
	}
	e.spawn.rec.Evacuation = e.Migration.UUID
	e.claimed = true
	g, gctx := errgroup.WithContext(ctx)
	for _, step := range []func(context.Context) error{e.spawn.rebindNetwork, e.spawn.prepareRoot, e.advance} {
		g.Go(func() error { return protect(gctx, func() error { return step(gctx) }) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if e.spawn.info != nil {
		m.setInfoCache(inst, e.spawn.info)
	}
	begin := e.spawn.start
	if e.stopped {
		begin = e.spawn.furnish // for the start that is asked for later
	}
	if err := begin(ctx); err != nil {
		return err
	}
	return e.finish(ctx)
}

// claim counts the instance here and says so in its migration. What is here of it already is refused:
// the host was not down, or has come back.
func (e *evacuation) claim(ctx context.Context) error {
	m, inst := e.m, e.Instance
	if inst.Host == m.opts.Host {
		return exception.InstanceExists(inst.Name(m.opts.InstanceNameTemplate))
	}
	rec, ok, err := m.record(inst.UUID)
	switch {
	case err != nil:
		return err
	case ok && rec.Evacuation != e.Migration.UUID:
		return exception.InstanceExists(inst.Name(m.opts.InstanceNameTemplate))
	case ok: // an interrupted attempt
		if err := m.removeFromHost(ctx, inst.UUID); err != nil {
			return err
		}
	}
	if err := m.Tracker.ClaimMove(ctx, inst, inst.Flavor, e.Migration.UUID); err != nil {
		return err
	}
	destination := m.Tracker.Destination()
	destination["status"] = migrationPreMigrating
	if err := m.Conductor.SaveMigration(ctx, e.Migration, destination); err != nil {
		return err
	}
	return m.saveMigrationContext(ctx, &move{inst: inst, migration: e.Migration})
}

// advance moves the task state along as nova-compute does, while ports and root disk are prepared.
func (e *evacuation) advance(ctx context.Context) error {
	// Others read the instance at the same time; the last save gives it the whole row.
	own := &object.Instance{Header: e.Instance.Clone(), ID: e.Instance.ID, UUID: e.Instance.UUID}
	task := object.TaskStateRebuilding
	for _, next := range []string{object.TaskStateRebuildBlockDeviceMapping, object.TaskStateRebuildSpawning} {
		err := e.m.Conductor.SaveInstance(ctx, own, map[string]any{"task_state": next}, conductor.ExpectTask(task))
		if err != nil {
			return err
		}
		task = next
	}
	return nil
}

// finish makes the instance active and this host's in one save: from then on the old host has nothing to say.
func (e *evacuation) finish(ctx context.Context) error {
	m, inst := e.m, e.Instance
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	changes := m.Tracker.Ownership()
	delete(changes, "launched_on")
	maps.Copy(changes, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateActive, "task_state": nil, "launched_at": object.Now(),
	})
	if err := m.Conductor.SaveInstance(ctx, inst, changes, conductor.ExpectTask(object.TaskStateRebuildSpawning)); err != nil {
		return err
	}
	m.Tracker.Arrived(ctx, inst, e.Migration.UUID, nil)
	e.spawn.rec.Evacuation = ""
	if err := m.saveRecord(e.spawn.rec); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("record of an evacuated instance not saved")
	}
	if e.stopped {
		if err := m.stopRebuilt(ctx, inst); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("evacuated server not stopped again")
		}
	}
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst})
	})
	m.Notify.Instance(ctx, notify.Event{Action: "rebuild", Phase: "end", Instance: inst, NetworkInfo: orEmpty(inst.NetworkInfo()), BDMs: e.BDMs})
	err = errors.Join(m.Conductor.DropMigrationContext(ctx, inst), m.Conductor.SaveMigration(ctx, e.Migration, map[string]any{"status": migrationDone}))
	if err != nil {
		reqctx.Log(ctx).WithError(err).Warning("evacuation not ended in its migration; the instance is here")
	}
	return nil
}

// failed leaves nothing here and the instance where it was: in error, if more than a claim was made.
func (e *evacuation) failed(ctx context.Context, cause error) error {
	m, inst := e.m, e.Instance
	cause = novaError(inst, cause)
	gone := isGone(cause) || overtakenByDelete(ctx)
	ctx = context.WithoutCancel(ctx)
	log := reqctx.Log(ctx).WithError(cause)
	if e.spawn != nil {
		if left := e.spawn.abandon(ctx); left != nil {
			cause = errors.Join(cause, left)
		}
	}
	if e.Migration != nil {
		m.Tracker.DropMove(ctx, e.Migration.UUID)
		if err := m.Conductor.SaveMigration(ctx, e.Migration, map[string]any{"status": migrationFailed}); err != nil {
			log.WithField("save_error", err).Warning("migration of a failed evacuation not ended")
		}
	}
	if err := m.removeFromAllocation(ctx, inst.UUID); err != nil {
		log.WithField("allocation_error", err).Error("this host's part of the allocation of a failed evacuation not removed")
	}
	m.Notify.Instance(ctx, notify.Event{Action: "rebuild", Phase: "error", Instance: inst, Err: cause, BDMs: e.BDMs})
	if gone {
		log.Info("evacuation ended because the instance is being deleted")
		return nil
	}
	if !e.claimed || exception.Is(cause, "UnexpectedTaskStateError") {
		return cause
	}
	if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError}); err != nil && !isGone(err) {
		return errors.Join(cause, err)
	}
	return cause
}

// removeFromAllocation takes this host's part out of what an instance holds; the rest is its other host's
// (nova/scheduler/client/report.py:remove_provider_tree_from_instance_allocation).
func (m *Manager) removeFromAllocation(ctx context.Context, uuid string) error {
	held, err := m.Placement.Allocations(ctx, uuid)
	if err != nil {
		return err
	}
	provider := m.Tracker.ProviderUUID()
	if _, ok := held.ByProvider[provider]; !ok {
		return nil
	}
	rest := maps.Clone(held.ByProvider)
	delete(rest, provider)
	if len(rest) == 0 {
		return m.Placement.EmptyAllocation(ctx, uuid)
	}
	held.ByProvider = rest
	err = m.Placement.SetAllocation(ctx, uuid, held)
	if errors.Is(err, placement.ErrConflict) {
		return fmt.Errorf("somebody else changes it: %w", err)
	}
	return err
}

// destroyEvacuated removes what this host has of instances that were evacuated from it while it was down
// (nova/compute/manager.py:_destroy_evacuated_instances). It returns their UUIDs: whatever their rows say,
// they are not this host's.
func (m *Manager) destroyEvacuated(ctx context.Context) (map[string]bool, error) {
	ctx = reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes"))
	migrations, err := m.Conductor.MigrationsByFilters(ctx, map[string]any{
		"source_compute": m.opts.Host, "migration_type": "evacuation",
		"status": []string{migrationAccepted, migrationPreMigrating, migrationDone},
	})
	if err != nil {
		return nil, fmt.Errorf("list evacuations from this host: %w", err)
	}
	evacuated := map[string]bool{}
	for _, migration := range migrations {
		if migration.DestCompute == m.opts.Host {
			continue
		}
		evacuated[migration.InstanceUUID] = true
		ctx := reqctx.WithField(ctx, "instance", migration.InstanceUUID)
		if err := m.endEvacuation(ctx, migration); err != nil {
			reqctx.Log(ctx).WithError(err).Error("evacuated instance not cleared away; the next start tries again")
		}
	}
	return evacuated, nil
}

func (m *Manager) endEvacuation(ctx context.Context, migration *object.Migration) error {
	unlock, err := m.locks.Lock(ctx, migration.InstanceUUID)
	if err != nil {
		return err
	}
	defer unlock()
	reqctx.Log(ctx).WithField("host", migration.DestCompute).Warning("removing an instance that was evacuated from this host")
	if err := m.removeFromHost(ctx, migration.InstanceUUID); err != nil {
		return err
	}
	if err := m.removeFromAllocation(ctx, migration.InstanceUUID); err != nil {
		return err
	}
	return m.Conductor.SaveMigration(ctx, migration, map[string]any{"status": migrationCompleted})
}
