package compute

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
)

// resumeMove takes up a step that an earlier process accepted and did not end.
func (m *Manager) resumeMove(ctx context.Context, step moveStep, entry journal.Entry) error {
	mv, err := decodeMove(entry.Method, entry.Args)
	if err != nil {
		return err
	}
	mv.resumed = true
	if entry.Resumed > maxResumes {
		step.run = func(ctx context.Context, mv *move) error { return m.failMove(ctx, mv, errInterrupted) }
	}
	m.startMove(ctx, mv, step, entry)
	return nil
}

// incompleteInterval is how often what failed moves left is looked for
// (nova/compute/manager.py:_cleanup_incomplete_migrations).
const incompleteInterval = 5 * time.Minute

// settleArrivals goes on with root disks whose move goes on, and removes the others.
func (m *Manager) settleArrivals(ctx context.Context) error {
	records, _, err := state.ListReadable[record](m.DB, recordBucket)
	if err != nil {
		return err
	}
	for uuid, rec := range records {
		if rec.Incoming == nil || m.arrivals.waits(uuid) || m.journal.Has(uuid) {
			continue
		}
		ctx := reqctx.WithField(ctx, "instance", uuid)
		if err := m.settleArrival(ctx, uuid); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("root disk that was on its way here not settled")
		}
	}
	return nil
}

func (m *Manager) settleArrival(ctx context.Context, uuid string) error {
	unlock, err := m.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	rec, ok, err := m.record(uuid) // a step may have ended meanwhile
	if err != nil || !ok || rec.Incoming == nil || m.arrivals.waits(uuid) {
		return err
	}
	inst, err := m.Conductor.InstanceByUUID(ctx, uuid)
	if err != nil && !exception.Is(err, "InstanceNotFound") {
		return err
	}
	switch {
	case err == nil && inst.Host == m.opts.Host:
		return nil // it is this host's by now; what is here is all there is of it
	case err == nil && (inst.TaskState == object.TaskStateResizePrep || inst.TaskState == object.TaskStateResizeMigrating):
		if rec.Incoming.Received {
			return nil
		}
		fetch, done, err := m.openFetch(ctx, rec)
		if err != nil {
			return err
		}
		reqctx.Log(ctx).Info("waiting again for the rest of a root disk")
		m.fetchRest(ctx, rec, fetch, done)
		return nil
	}
	reqctx.Log(ctx).Warning("removing a root disk whose move came to nothing")
	m.arrivals.set(uuid, nil)
	return m.removeFromHost(ctx, uuid)
}

// completeMigrating puts a guest back to work whose move broke off before the instance changed hosts
// (nova/compute/manager.py:_init_instance).
func (m *Manager) completeMigrating(ctx context.Context, inst *object.Instance) error {
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	if isOff(now) && stateBefore(inst) != object.VMStateStopped {
		if err := m.powerOn(ctx, inst, inst.NetworkInfo()); err != nil {
			return err
		}
		if now, err = m.powerState(ctx, inst.UUID); err != nil {
			return err
		}
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": nil, "power_state": int(now)})
}

// movesOn tells that a task is another step's of a move, whose message may wait in the queue.
func movesOn(task string) bool {
	switch task {
	case object.TaskStateResizePrep, object.TaskStateResizeMigrated, object.TaskStateResizeFinish, object.TaskStateResizeReverting:
		return true
	}
	return false
}

// confirmOldResizes confirms what its owner has not confirmed within resize_confirm_window. The destination does
// it, as the API would: the source removes what is left there (nova/compute/manager.py:_poll_unconfirmed_resizes).
func (m *Manager) confirmOldResizes(ctx context.Context) error {
	if m.opts.ResizeConfirmWindow <= 0 {
		return nil
	}
	migrations, err := m.Conductor.UnconfirmedResizes(ctx, int(m.opts.ResizeConfirmWindow/time.Second), m.opts.Host)
	if err != nil {
		return err
	}
	for _, migration := range migrations {
		ctx := reqctx.WithField(ctx, "instance", migration.InstanceUUID)
		if err := m.confirmOldResize(ctx, migration); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("resize not confirmed; the next turn tries again")
		}
	}
	return nil
}

func (m *Manager) confirmOldResize(ctx context.Context, migration *object.Migration) error {
	inst, err := m.Conductor.InstanceByUUID(ctx, migration.InstanceUUID, "metadata", "system_metadata", "flavor", "info_cache")
	if err != nil && !exception.Is(err, "InstanceNotFound") {
		return err
	}
	if err != nil || inst.VMState == object.VMStateError {
		return m.Conductor.SaveMigration(ctx, migration, map[string]any{"status": migrationError})
	}
	if inst.TaskState != object.TaskStateNone {
		return nil // the resize is about to end, or it is reverted or deleted
	}
	if inst.VMState != object.VMStateResized { // nobody can confirm it any more
		return m.Conductor.SaveMigration(ctx, migration, map[string]any{"status": migrationError})
	}
	reqctx.Log(ctx).Info("confirming a resize after resize_confirm_window")
	// What the API does at confirmResize (nova/compute/api.py:confirm_resize).
	if err := m.Conductor.StartAction(ctx, inst.UUID, "confirmResize"); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("confirmResize action not recorded")
	}
	if err := m.Conductor.SaveMigration(ctx, migration, map[string]any{"status": migrationConfirming}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, castTimeout)
	defer cancel()
	return m.Conductor.CastCompute(ctx, migration.SourceCompute, false, "confirm_resize", map[string]any{"instance": inst, "migration": migration})
}
