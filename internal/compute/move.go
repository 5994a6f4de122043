package compute

import (
	"context"
	"encoding/json"
	"errors"
	"maps"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// Resize and cold migration are one sequence of methods on two hosts, which may be one
// (nova/compute/manager.py):
//
//	destination  prep_resize           claim; copy of the root disk while the guest runs
//	source       resize_instance       stop; rest of the root disk; the instance changes hosts
//	destination  finish_resize         start with the new flavor
//	source       confirm_resize        what is left there is removed
//	destination  revert_resize         what is there is removed
//	source       finish_revert_resize  start as before
//
// Everything that can fail for want of something on the destination does so before the
// instance changes hosts, and the guest goes on where it was. On one host the guest is not
// stopped, if its limits can be changed while it runs.

// statuses of a migration (nova/objects/migration.py).
const (
	migrationPreMigrating  = "pre-migrating"
	migrationMigrating     = "migrating"
	migrationPostMigrating = "post-migrating"
	migrationFinished      = "finished"
	migrationConfirming    = "confirming"
	migrationConfirmed     = "confirmed"
	migrationReverted      = "reverted"
	migrationError         = "error"
	migrationDone          = "done"
	migrationAccepted      = "accepted"
	migrationCompleted     = "completed"
	migrationFailed        = "failed"
)

// move is one method of a move, with its arguments.
type move struct {
	method    string
	inst      *object.Instance
	migration *object.Migration
	flavor    *object.Flavor // prep_resize, resize_instance
	image     object.Image   // as a dict; prep_resize, resize_instance, finish_resize
	clean     bool           // clean_shutdown
	hosts     []json.RawMessage
	filters   map[string]json.RawMessage

	args    rpc.Args // as received, for what is passed on
	resumed bool     // an earlier process began it
}

// same tells that the instance stays on this host.
func (m *Manager) same(mv *move) bool {
	return mv.migration.SourceCompute == m.opts.Host && (mv.method == "prep_resize" || mv.migration.DestCompute == m.opts.Host)
}

func decodeMove(method string, args rpc.Args) (*move, error) {
	mv := &move{method: method, inst: &object.Instance{}, migration: &object.Migration{}, clean: true, args: args}
	for _, a := range []struct {
		name     string
		into     any
		optional bool
	}{
		{"instance", mv.inst, false},
		{"migration", mv.migration, false},
		{"flavor", &mv.flavor, true},
		{"image", &mv.image, true},
		{"clean_shutdown", &mv.clean, true},
		{"host_list", &mv.hosts, true},
		{"filter_properties", &mv.filters, true},
	} {
		if _, ok := args[a.name]; !ok && a.optional {
			continue
		}
		if err := args.Decode(a.name, a.into); err != nil {
			return nil, err
		}
	}
	if err := checkUUID(mv.inst); err != nil {
		return nil, err
	}
	if mv.migration.UUID == "" {
		return nil, errors.New("decode argument migration: it has no uuid")
	}
	if mv.flavor == nil && (method == "prep_resize" || method == "resize_instance") {
		return nil, errors.New("decode argument flavor: it is null")
	}
	return mv, nil
}

// moveStep says how a method of a move is carried out.
type moveStep struct {
	run    func(ctx context.Context, mv *move) error
	revert bool // a failure resets the task state
	answer bool // the caller may wait for the end
}

func (m *Manager) moveSteps() map[string]moveStep {
	return map[string]moveStep{
		"prep_resize":          {run: m.prepResize, revert: true},
		"resize_instance":      {run: m.resizeInstance, revert: true},
		"finish_resize":        {run: m.finishResize, revert: true},
		"confirm_resize":       {run: m.confirmResize, answer: true},
		"revert_resize":        {run: m.revertResize, revert: true},
		"finish_revert_resize": {run: m.finishRevertResize, revert: true},
	}
}

// moveMethod makes the RPC handler of a step: it journals the step and carries it out in the
// background, since a copy takes longer than a worker can be spared.
func (m *Manager) moveMethod(method string, step moveStep) rpc.Handler {
	return func(ctx context.Context, args rpc.Args) (any, error) {
		mv, err := decodeMove(method, args)
		if err != nil {
			return nil, err
		}
		done := m.startMove(ctx, mv, step, journal.NewEntry(ctx, method, args))
		if !step.answer {
			return nil, nil
		}
		select {
		case err := <-done:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// startMove accepts a step; the channel gives its outcome. What cannot be journaled is not begun.
func (m *Manager) startMove(ctx context.Context, mv *move, step moveStep, entry journal.Entry) <-chan error {
	done := make(chan error, 1) // nobody may wait for it
	op := &journal.Operation{UUID: mv.inst.UUID, Method: mv.method}
	m.accept(ctx, op, entry, func(ctx context.Context, err error) bool {
		if err == nil {
			err = m.runMove(ctx, mv, step)
		} else {
			err = m.settleMove(context.WithoutCancel(ctx), mv, step, err)
		}
		done <- err
		return !handedBack(ctx, err)
	})
	return done
}

// runMove surrounds a step with what nova-compute's decorators do: the lock, the action event, the
// fault and the task state.
func (m *Manager) runMove(ctx context.Context, mv *move, step moveStep) error {
	unlock, err := m.locks.Lock(ctx, mv.inst.UUID)
	if err != nil {
		return m.settleMove(context.WithoutCancel(ctx), mv, step, err)
	}
	defer unlock()
	if !mv.resumed {
		m.startEvent(ctx, mv.inst.UUID, mv.method)
	}
	err = protect(ctx, func() error { return step.run(ctx, mv) })
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errDeleted) {
		err = cause
	}
	if errors.Is(err, errLeaving) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		err = m.settleMove(ctx, mv, step, err)
	}
	m.finishEvent(ctx, mv.inst.UUID, mv.method, err)
	return err
}

// settleMove records the failure of a step. One of an instance that is being deleted is none.
func (m *Manager) settleMove(ctx context.Context, mv *move, step moveStep, err error) error {
	if isGone(err) {
		reqctx.Log(ctx).WithError(err).Info("move ended because the instance is being deleted")
		return nil
	}
	var ended *failedMove
	op := operation{method: mv.method, fault: true, revert: step.revert && !errors.As(err, &ended)}
	return m.settle(ctx, op, mv.inst, err)
}

// rolledBack marks a failure after which the guest is as before
// (nova/exception.py:InstanceFaultRollback).
type rolledBack struct{ error }

// Unwrap gives the failure itself.
func (e *rolledBack) Unwrap() error { return e.error }

// failedMove marks a failure whose states are stored.
type failedMove struct{ error }

// Unwrap gives the failure itself.
func (e *failedMove) Unwrap() error { return e.error }

// failMove ends a move: the migration is in error, and so is the instance, unless it is as it was
// before (nova/compute/manager.py:_error_out_instance_on_exception, errors_out_migration_ctxt).
func (m *Manager) failMove(ctx context.Context, mv *move, err error) error {
	if isGone(err) || exception.Is(err, "UnexpectedTaskStateError") {
		return err
	}
	log := reqctx.Log(ctx)
	if saveErr := m.saveMigration(ctx, mv, migrationError); saveErr != nil {
		log.WithError(saveErr).Warning("migration not put into error")
	}
	changes := map[string]any{"vm_state": object.VMStateError, "task_state": nil}
	var expect []conductor.Expect
	if _, rolled := errors.AsType[*rolledBack](err); rolled {
		changes["vm_state"] = stateBefore(mv.inst)
		// The server may do something else by now: its owner had it all the time.
		expect = append(expect, conductor.ExpectTask(object.TaskStateResizePrep, object.TaskStateResizeMigrating))
	}
	saveErr := m.store(ctx, func(ctx context.Context) error { return m.Conductor.SaveInstance(ctx, mv.inst, changes, expect...) })
	if saveErr != nil && !isGone(saveErr) {
		log.WithError(saveErr).Error("state of a failed move not stored")
	}
	return &failedMove{err}
}

// stateBefore is the vm_state that a server had before it was moved.
func stateBefore(inst *object.Instance) string {
	before := inst.System(oldVMState)
	if before == "" {
		before = inst.VMState
	}
	if before == object.VMStateStopped {
		return object.VMStateStopped
	}
	return object.VMStateActive
}

func (m *Manager) saveMigration(ctx context.Context, mv *move, status string) error {
	return m.store(ctx, func(ctx context.Context) error {
		return m.Conductor.SaveMigration(ctx, mv.migration, map[string]any{"status": status})
	})
}

// revertAllocation gives the instance back what the conductor moved to the migration
// (nova/compute/manager.py:_revert_allocation).
func (m *Manager) revertAllocation(ctx context.Context, mv *move) {
	if err := m.Placement.MoveAllocation(ctx, mv.migration.UUID, mv.inst.UUID); err != nil {
		reqctx.Log(ctx).WithField("migration", mv.migration.UUID).WithError(err).Error("allocation of a move not given back")
	}
}

// dropAllocation drops what the migration holds.
func (m *Manager) dropAllocation(ctx context.Context, mv *move) {
	if err := m.Placement.EmptyAllocation(ctx, mv.migration.UUID); err != nil {
		reqctx.Log(ctx).WithField("migration", mv.migration.UUID).WithError(err).Error("allocation of a move not dropped")
	}
}

// castMove sends the next step to the host that does it. The instance travels as it is now.
func (m *Manager) castMove(ctx context.Context, host string, alt bool, method string, mv *move, more map[string]any, passed ...string) error {
	args := map[string]any{"instance": mv.inst, "migration": mv.migration}
	for _, name := range passed {
		value, ok := mv.args[name]
		if !ok {
			value = json.RawMessage("null")
		}
		args[name] = value
	}
	maps.Copy(args, more)
	ctx, cancel := context.WithTimeout(ctx, castTimeout)
	defer cancel()
	return m.Conductor.CastCompute(ctx, host, alt, method, args)
}

// loadMove reads what the steps and their notifications need of the instance.
func (m *Manager) loadMove(ctx context.Context, mv *move) error {
	return m.Conductor.LoadInstance(ctx, mv.inst, "flavor", "info_cache", "metadata", "system_metadata")
}

// flavors are the changes that store the three flavors of an instance. They are one column:
// what is left out the conductor would read from the row, over the others.
func flavors(now, old, next *object.Flavor) map[string]any {
	orNull := func(f *object.Flavor) any {
		if f == nil {
			return nil
		}
		return f
	}
	return map[string]any{"flavor": now, "old_flavor": orNull(old), "new_flavor": orNull(next)}
}

// sizes are the columns that repeat a flavor (nova/compute/manager.py:_set_instance_info).
func sizes(f *object.Flavor) map[string]any {
	return map[string]any{
		"instance_type_id": f.ID, "memory_mb": f.MemoryMB, "vcpus": f.VCPUs, "root_gb": f.RootGB, "ephemeral_gb": f.EphemeralGB,
	}
}

// expectTask is the expectation of a step; taken up again, the step may have stored the next state already.
func (mv *move) expectTask(task string, later ...string) conductor.Expect {
	if mv.resumed {
		return conductor.ExpectTask(append([]string{task}, later...)...)
	}
	return conductor.ExpectTask(task)
}
