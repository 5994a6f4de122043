package compute

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// operationBucket holds an operationEntry per instance UUID: an accepted operation that takes
// long and changes much. The task state alone does not say how to finish it.
const operationBucket = "operations"

// operationEntry is such an operation as it came: arguments and request context, its token
// and passwords included. The database is readable by root alone.
type operationEntry struct {
	Method   string                     `json:"method"`
	Args     rpc.Args                   `json:"args"`
	Context  map[string]json.RawMessage `json:"context"`
	Accepted time.Time                  `json:"accepted"`
	// Resumed counts the starts of the agent that took the operation up again.
	Resumed int `json:"resumed,omitempty"`
}

// errInterruptedOperation ends an operation that was interrupted too often.
var errInterruptedOperation = errors.New("the agent was stopped again and again while it worked on this server")

// detached makes a handler that returns at once: the work goes on in the background, so that
// operations that wait for other services for long do not hold the server's workers. Until
// its end the operation is in the journal, and a delete of the instance cancels it.
func (m *Manager) detached(op operation, body instanceFunc) rpc.Handler {
	op.cancelled = true
	return func(ctx context.Context, args rpc.Args) (any, error) {
		inst := &object.Instance{}
		if err := args.Decode("instance", inst); err != nil {
			return nil, err
		}
		if inst.UUID == "" {
			return nil, errNoUUID
		}
		entry := operationEntry{Method: op.method, Args: args, Context: reqctx.From(ctx).Map(), Accepted: time.Now().UTC()}
		// What cannot be journaled is done all the same: a crash of the agent puts it into ERROR then.
		if err := state.Put(m.DB, operationBucket, inst.UUID, entry); err != nil {
			reqctx.Log(ctx).WithError(err).Error("operation not written to the journal")
		}
		m.background(ctx, func(ctx context.Context) { m.runJournaled(ctx, op, inst, args, body) })
		return nil, nil
	}
}

// runJournaled carries out an operation that is in the journal and takes it out at its end.
func (m *Manager) runJournaled(ctx context.Context, op operation, inst *object.Instance, args rpc.Args, body instanceFunc) {
	err := protect(func() error {
		_, err := m.perform(ctx, op, inst, args, body)
		return err
	})
	if err != nil {
		reqctx.Log(ctx).WithField("instance", inst.UUID).WithField("method", op.method).WithError(err).Warning("operation failed")
	}
	if err := state.Delete(m.DB, operationBucket, inst.UUID); err != nil {
		reqctx.Log(ctx).WithError(err).Error("operation not removed from the journal")
	}
}

// cancels are the operations under way that a delete of their instance ends. The zero value
// is ready for use.
type cancels struct {
	mu         sync.Mutex // guards operations
	operations map[*cancelled]bool
}

type cancelled struct {
	uuid, method string
	cancel       context.CancelCauseFunc
}

// add makes an operation known until the returned function is called.
func (c *cancels) add(ctx context.Context, uuid, method string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	one := &cancelled{uuid: uuid, method: method, cancel: cancel}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.operations == nil {
		c.operations = map[*cancelled]bool{}
	}
	c.operations[one] = true
	return ctx, func() {
		c.mu.Lock()
		delete(c.operations, one)
		c.mu.Unlock()
		cancel(nil)
	}
}

// cancel ends the operations on an instance, of the named methods only if there are any.
func (c *cancels) cancel(uuid string, cause error, methods ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for one := range c.operations {
		if one.uuid == uuid && (len(methods) == 0 || slices.Contains(methods, one.method)) {
			one.cancel(cause)
		}
	}
}

// has tells whether an operation on an instance waits or is under way.
func (c *cancels) has(uuid string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for one := range c.operations {
		if one.uuid == uuid {
			return true
		}
	}
	return false
}

// endingSnapshots is a handler for a delete that can be taken back: it does not wait for an upload either,
// but lets what changes the root disk come to its end.
func (m *Manager) endingSnapshots(h rpc.Handler) rpc.Handler {
	return func(ctx context.Context, args rpc.Args) (any, error) {
		var inst object.Instance
		if args.Decode("instance", &inst) == nil {
			m.cancels.cancel(inst.UUID, errDeleted, "snapshot_instance", "backup_instance")
		}
		return h(ctx, args)
	}
}

// overtakenByDelete tells that an operation ended because its instance is being deleted.
func overtakenByDelete(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errDeleted) }

// resumption says how an interrupted operation begins anew.
type resumption struct {
	task string // the task state in which the API leaves the instance; "": any
	// failed is the vm_state after an operation that cannot be finished; "": as it was.
	failed string
}

// resumptions are the operations that the journal holds.
var resumptions = map[string]resumption{
	"rebuild_instance":        {task: object.TaskStateRebuilding, failed: object.VMStateError},
	"rescue_instance":         {task: object.TaskStateRescuing, failed: object.VMStateError},
	"unrescue_instance":       {task: object.TaskStateUnrescuing, failed: object.VMStateError},
	"snapshot_instance":       {task: object.TaskStateImageSnapshotPending},
	"backup_instance":         {task: object.TaskStateImageBackup},
	"shelve_instance":         {task: object.TaskStateShelving},
	"shelve_offload_instance": {task: object.TaskStateShelvingOffloading},
	"unshelve_instance":       {task: object.TaskStateUnshelving},
}

// interrupted gives the journal's entry of an instance whose operation was cut off; false: there is none.
func (m *Manager) interrupted(uuid string) (operationEntry, bool, error) {
	return state.Get[operationEntry](m.DB, operationBucket, uuid)
}

// resumeOperation takes up an operation that an earlier process accepted and did not end: it
// comes again from its beginning. The caller holds the instance's lock.
func (m *Manager) resumeOperation(ctx context.Context, inst *object.Instance, entry operationEntry) error {
	ctx = reqctx.WithField(reqctx.With(ctx, reqctx.FromMap(entry.Context)), "instance", inst.UUID)
	log := reqctx.Log(ctx).WithField("method", entry.Method).WithField("accepted", entry.Accepted)
	how, known := resumptions[entry.Method]
	again, served := m.journaled()[entry.Method]
	if !known || !served {
		log.Error("operation in the journal is not one of this agent's")
		return state.Delete(m.DB, operationBucket, inst.UUID)
	}
	if err := m.clearInterrupted(ctx, inst); err != nil {
		return err
	}
	if inst.TaskState == object.TaskStateNone { // it had ended, but for its entry
		return errors.Join(state.Delete(m.DB, operationBucket, inst.UUID), m.settleInstance(ctx, inst))
	}
	if entry.Resumed++; entry.Resumed > maxResumes {
		return m.giveUpOperation(ctx, inst, entry, how)
	}
	if err := state.Put(m.DB, operationBucket, inst.UUID, entry); err != nil {
		return err
	}
	log.Warning("resuming an operation that the agent's last stop interrupted")
	// A server that is shelved already is only to be offloaded.
	offloading := inst.TaskState == object.TaskStateShelvingOffloading && inst.VMState == object.VMStateShelved
	if how.task != inst.TaskState && !offloading {
		if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": how.task}); err != nil {
			return err
		}
	}
	op := again.op
	op.lock, op.cancelled = false, true // the lock is held
	m.runJournaled(ctx, op, inst, entry.Args, again.body)
	return nil
}

// resumeElsewhere takes up operations on instances that Nova does not have on this host yet, or any more:
// an unshelve before its claim, a delete that nobody needs to finish.
func (m *Manager) resumeElsewhere(ctx context.Context, known map[string]bool) error {
	entries, err := state.List[operationEntry](m.DB, operationBucket)
	if err != nil {
		return err
	}
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
			if err := protect(func() error { return m.resumeUnplaced(ctx, uuid, entry) }); err != nil {
				reqctx.Log(ctx).WithError(err).Error("interrupted operation not settled after the start")
			}
		})
	}
	return nil
}

func (m *Manager) resumeUnplaced(ctx context.Context, uuid string, entry operationEntry) error {
	inst, err := m.Conductor.InstanceByUUID(ctx, uuid, "info_cache", "metadata", "system_metadata", "flavor")
	switch {
	case exception.Is(err, "InstanceNotFound"):
		return state.Delete(m.DB, operationBucket, uuid)
	case err != nil:
		return err
	case inst.Host == "" && inst.VMState == object.VMStateShelvedOffloaded && entry.Method == "unshelve_instance" &&
		(inst.TaskState == object.TaskStateUnshelving || inst.TaskState == object.TaskStateSpawning):
		return m.resumeOperation(ctx, inst, entry)
	case entry.Method == "rebuild_instance" && slices.Contains(rebuildTasks, inst.TaskState) && isEvacuation(entry.Args):
		return m.resumeOperation(ctx, inst, entry)
	}
	reqctx.Log(ctx).WithField("method", entry.Method).Info("the instance of an interrupted operation is not here any more")
	return state.Delete(m.DB, operationBucket, uuid)
}

// isEvacuation tells that a rebuild is of an instance of another host.
func isEvacuation(args rpc.Args) bool {
	var recreate bool
	return args.Decode("recreate", &recreate) == nil && recreate
}

// giveUpOperation ends an operation that could not be finished in several starts of the agent.
func (m *Manager) giveUpOperation(ctx context.Context, inst *object.Instance, entry operationEntry, how resumption) error {
	m.recordFault(ctx, inst, exception.WithCause("InstanceInvalidState", errInterruptedOperation.Error(), nil, errInterruptedOperation))
	changes := map[string]any{"task_state": nil}
	if how.failed != "" {
		changes["vm_state"] = how.failed
	}
	reqctx.Log(ctx).WithField("method", entry.Method).Error("operation given up after several interruptions")
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil {
		return err
	}
	return state.Delete(m.DB, operationBucket, inst.UUID)
}

// journaledMethod is a method whose messages the journal keeps.
type journaledMethod struct {
	op   operation
	body instanceFunc
}

// journaled are the methods that run detached from their message.
func (m *Manager) journaled() map[string]journaledMethod {
	full := func(method string, body instanceFunc) journaledMethod {
		return journaledMethod{operation{method: method, event: method, fault: true, revert: true, lock: true}, body}
	}
	methods := map[string]journaledMethod{}
	for _, j := range []journaledMethod{
		full("rebuild_instance", m.rebuildInstance),
		full("rescue_instance", m.rescueInstance),
		full("unrescue_instance", m.unrescueInstance),
		full("snapshot_instance", m.snapshotInstance),
		full("backup_instance", m.backupInstance),
		full("shelve_instance", m.shelveInstance),
		full("shelve_offload_instance", m.shelveOffloadInstance),
		full("unshelve_instance", m.unshelveInstance),
	} {
		methods[j.op.method] = j
	}
	return methods
}
