package compute

import (
	"context"
	"errors"
	"slices"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// errInterruptedOperation ends an operation that was interrupted too often.
var errInterruptedOperation = errors.New("the agent was stopped again and again while it worked on this server")

// detachedMethod is a method that runs apart from its message: it waits for other services for long,
// and would hold one of the server's workers. An interrupted one begins anew.
type detachedMethod struct {
	op   operation
	body instanceFunc
	task string // the task state in which the API leaves the instance
	// failed is the vm_state after an operation that cannot be finished; "": as it was.
	failed string
}

// detachedMethods are these methods. Those that are not ours-only look for themselves: an instance to unshelve
// or to evacuate is not here, and an image is to be deleted in any case.
func (m *Manager) detachedMethods() map[string]detachedMethod {
	ours := operation{ours: true}
	methods := map[string]detachedMethod{
		"rebuild_instance":        {body: m.rebuildInstance, task: object.TaskStateRebuilding, failed: object.VMStateError},
		"rescue_instance":         {op: ours, body: m.rescueInstance, task: object.TaskStateRescuing, failed: object.VMStateError},
		"unrescue_instance":       {op: ours, body: m.unrescueInstance, task: object.TaskStateUnrescuing, failed: object.VMStateError},
		"snapshot_instance":       {body: m.snapshotInstance, task: object.TaskStateImageSnapshotPending},
		"backup_instance":         {body: m.backupInstance, task: object.TaskStateImageBackup},
		"shelve_instance":         {body: m.shelveInstance, task: object.TaskStateShelving},
		"shelve_offload_instance": {op: ours, body: m.shelveOffloadInstance, task: object.TaskStateShelvingOffloading},
		"unshelve_instance":       {body: m.unshelveInstance, task: object.TaskStateUnshelving},
	}
	for method, d := range methods {
		d.op.method, d.op.event = method, method
		d.op.fault, d.op.revert, d.op.lock, d.op.again = true, true, true, true
		methods[method] = d
	}
	return methods
}

// detached makes a handler that returns at once. Until its end the operation is in the journal,
// and a delete of the instance cancels it.
func (m *Manager) detached(d detachedMethod) rpc.Handler {
	return func(ctx context.Context, args rpc.Args) (any, error) {
		inst, err := instanceArgument(args)
		if err != nil {
			return nil, err
		}
		op := &journal.Operation{UUID: inst.UUID, Method: d.op.method}
		m.accept(ctx, op, journal.NewEntry(ctx, d.op.method, args), func(ctx context.Context, unwritten error) bool {
			if unwritten != nil { // it is done all the same: a crash of the agent puts the instance into ERROR then
				reqctx.Log(ctx).WithError(unwritten).Error("operation not written to the journal")
			}
			return m.runDetached(ctx, d, inst, args)
		})
		return nil, nil
	}
}

// runDetached carries an operation out. It tells whether that has an outcome, good or bad.
func (m *Manager) runDetached(ctx context.Context, d detachedMethod, inst *object.Instance, args rpc.Args) (settled bool) {
	err := protect(ctx, func() error {
		_, err := m.perform(ctx, d.op, inst, args, d.body)
		return err
	})
	if handedBack(ctx, err) {
		return false
	}
	if err != nil {
		reqctx.Log(ctx).WithError(err).Warning("operation failed")
	}
	return true
}

// throughAPI does what the API's action would: the task state, an action that the owner finds in the
// server's history, and the operation itself.
func (m *Manager) throughAPI(ctx context.Context, inst *object.Instance, task, action, method string) error {
	unlock, err := m.locks.Lock(ctx, inst.UUID)
	if err != nil {
		return err
	}
	defer unlock()
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": task}, conductor.ExpectVM(inst.VMState), expectNoTask())
	if err != nil {
		if exception.Is(err, "UnexpectedTaskStateError") || exception.Is(err, "InstanceUpdateConflict") || isGone(err) {
			return nil // somebody asked for something meanwhile
		}
		return err
	}
	if err := m.Conductor.StartAction(ctx, inst.UUID, action); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("action not recorded")
	}
	d := m.detachedMethods()[method]
	d.op.lock = false // the lock is held
	// It need not be written: after a crash the task is reset, and the next turn begins again.
	op := &journal.Operation{UUID: inst.UUID, Method: method}
	ctx = m.journal.Add(ctx, op)
	defer m.journal.Forget(op)
	_, err = m.perform(ctx, d.op, inst, rpc.Args{}, d.body)
	return err
}

// endingSnapshots is a handler for a delete that can be taken back: it does not wait for an upload either,
// but lets what changes the root disk come to its end.
func (m *Manager) endingSnapshots(h rpc.Handler) rpc.Handler {
	return func(ctx context.Context, args rpc.Args) (any, error) {
		if inst, err := instanceArgument(args); err == nil {
			m.journal.Cancel(inst.UUID, errDeleted, "snapshot_instance", "backup_instance")
		}
		return h(ctx, args)
	}
}

// overtakenByDelete tells that an operation ended because its instance is being deleted.
func overtakenByDelete(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errDeleted) }

// settleInterrupted settles an instance whose operation an earlier process accepted and did not end. The
// caller holds its lock.
func (m *Manager) settleInterrupted(ctx context.Context, inst *object.Instance, entry journal.Entry) error {
	if leavingNova(inst) {
		return errors.Join(m.settleInstance(ctx, inst), m.journal.Drop(inst.UUID))
	}
	return m.resumeOperation(ctx, inst, entry)
}

// resumeOperation takes up an operation that an earlier process accepted and did not end: it
// comes again from its beginning. The caller holds the instance's lock.
func (m *Manager) resumeOperation(ctx context.Context, inst *object.Instance, entry journal.Entry) error {
	ctx = reqctx.WithField(entry.In(ctx, inst.UUID), "method", entry.Method)
	again := m.detachedMethods()[entry.Method]
	if err := m.clearInterrupted(ctx, inst); err != nil {
		return err
	}
	if inst.TaskState == object.TaskStateNone { // it had ended, but for its entry
		return errors.Join(m.journal.Drop(inst.UUID), m.settleInstance(ctx, inst))
	}
	if entry.Resumed++; entry.Resumed > maxResumes {
		return m.giveUpOperation(ctx, inst, entry, again.failed)
	}
	op := &journal.Operation{UUID: inst.UUID, Method: entry.Method}
	if err := m.journal.Write(op, entry); err != nil {
		return err
	}
	reqctx.Log(ctx).WithField("accepted", entry.Accepted).Warning("resuming an operation that the agent's last stop interrupted")
	// A server that is shelved already is only to be offloaded.
	offloading := inst.TaskState == object.TaskStateShelvingOffloading && inst.VMState == object.VMStateShelved
	if again.task != inst.TaskState && !offloading {
		if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": again.task}); err != nil {
			return err
		}
	}
	again.op.lock, again.op.resumed = false, true // the lock is held
	ctx = m.journal.Add(ctx, op)
	m.end(ctx, op, m.runDetached(ctx, again, inst, entry.Args))
	return nil
}

// resumeElsewhere takes up operations on instances that Nova does not have on this host yet, or any more:
// an unshelve before its claim, a delete that nobody needs to finish.
func (m *Manager) resumeElsewhere(ctx context.Context, entries map[string]journal.Entry, known map[string]bool) error {
	for uuid, entry := range entries {
		if known[uuid] {
			continue
		}
		unlock, err := m.locks.Lock(ctx, uuid)
		if err != nil {
			return err
		}
		m.background(reqctx.WithField(ctx, "instance", uuid), func(ctx context.Context) {
			defer unlock()
			if err := protect(ctx, func() error { return m.resumeUnplaced(ctx, uuid, entry) }); err != nil {
				reqctx.Log(ctx).WithError(err).Error("interrupted operation not settled after the start")
			}
		})
	}
	return nil
}

func (m *Manager) resumeUnplaced(ctx context.Context, uuid string, entry journal.Entry) error {
	inst, err := m.Conductor.InstanceByUUID(ctx, uuid, "info_cache", "metadata", "system_metadata", "flavor")
	switch {
	case exception.Is(err, "InstanceNotFound"):
		return m.journal.Drop(uuid)
	case err != nil:
		return err
	case inst.Host == "" && inst.VMState == object.VMStateShelvedOffloaded && entry.Method == "unshelve_instance" &&
		(inst.TaskState == object.TaskStateUnshelving || inst.TaskState == object.TaskStateSpawning):
		return m.resumeOperation(ctx, inst, entry)
	case entry.Method == "rebuild_instance" && slices.Contains(rebuildTasks, inst.TaskState) && isEvacuation(entry.Args):
		return m.resumeOperation(ctx, inst, entry)
	}
	reqctx.Log(ctx).WithField("method", entry.Method).Info("the instance of an interrupted operation is not here any more")
	return m.journal.Drop(uuid)
}

// isEvacuation tells that a rebuild is of an instance of another host.
func isEvacuation(args rpc.Args) bool {
	var recreate bool
	return args.Decode("recreate", &recreate) == nil && recreate
}

// giveUpOperation ends an operation that could not be finished in several starts of the agent.
func (m *Manager) giveUpOperation(ctx context.Context, inst *object.Instance, entry journal.Entry, vmState string) error {
	failure := exception.WithCause("InstanceInvalidState", errInterruptedOperation.Error(), nil, errInterruptedOperation)
	m.recordFault(ctx, inst, failure)
	changes := map[string]any{"task_state": nil}
	if vmState != "" {
		changes["vm_state"] = vmState
	}
	reqctx.Log(ctx).WithField("method", entry.Method).Error("operation given up after several interruptions")
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil {
		return err
	}
	m.finishEvent(ctx, inst.UUID, entry.Method, failure)
	return m.journal.Drop(inst.UUID)
}
