package compute

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime/debug"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
	"github.com/compute-agent/compute-agent/rpc"
)

// operation says what surrounds a method on one instance: the decorators of
// nova/compute/manager.py (conductor.md section 6.1 lists them per method).
type operation struct {
	method string // RPC method, e.g. "stop_instance"
	event  string // name of the action event without its prefix; empty: none
	fault  bool   // record an instance fault on failure
	revert bool   // reset task_state on failure
	lock   bool   // serialise with other operations on the instance
	ours   bool   // refuse an instance of another host
	again  bool   // the next start of the agent takes it up: the agent's end does not wait for its turn
	// resumed: an earlier process has begun it, and its event.
	resumed bool
}

// instanceFunc is the body of a method on one instance.
type instanceFunc func(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error)

// onInstance makes an RPC handler of a method body.
func (m *Manager) onInstance(op operation, body instanceFunc) rpc.Handler {
	return func(ctx context.Context, args rpc.Args) (any, error) {
		inst, err := instanceArgument(args)
		if err != nil {
			return nil, err
		}
		return m.perform(ctx, op, inst, args, body)
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// instanceArgument reads the instance that a method is about.
func instanceArgument(args rpc.Args) (*object.Instance, error) {
	inst := &object.Instance{}
	if err := args.Decode("instance", inst); err != nil {
		return nil, err
	}
	return inst, checkUUID(inst)
}

// checkUUID refuses an instance without a UUID: it names files, links and records of this host.
func checkUUID(inst *object.Instance) error {
	if !uuidForm.MatchString(inst.UUID) {
		return exception.New("InvalidUUID", map[string]any{"uuid": inst.UUID})
	}
	return nil
}

// perform runs a method body between the start and the end of its action event and
// deals with its failure as nova-compute's decorators do.
func (m *Manager) perform(ctx context.Context, op operation, inst *object.Instance, args rpc.Args, body instanceFunc) (any, error) {
	ctx = reqctx.WithField(reqctx.WithField(ctx, "instance", inst.UUID), "method", op.method)
	ctx, watch := stopwatch.With(ctx)
	if op.event != "" && !op.resumed {
		defer m.begun.add(ctx, inst.UUID, op.event)()
		m.startEvent(ctx, inst.UUID, op.event)
	}
	result, err := m.locked(ctx, op, inst, args, body)
	switch {
	case err != nil && overtakenByDelete(ctx):
		reqctx.Log(ctx).WithError(err).Info("operation ended because the instance is being deleted")
		err = nil
	case err != nil:
		err = m.settle(ctx, op, inst, err)
	}
	if op.event != "" && !leaving(ctx, err) {
		m.finishEvent(ctx, inst.UUID, op.event, err)
	}
	if op.event != "" && err == nil {
		reqctx.Log(ctx).WithFields(watch.Fields()).Info("operation done")
	}
	return result, err
}

func (m *Manager) locked(ctx context.Context, op operation, inst *object.Instance, args rpc.Args, body instanceFunc) (any, error) {
	if op.ours {
		if err := m.checkOurs(inst); err != nil {
			return nil, err
		}
	}
	if op.lock {
		queued := stopwatch.Wait(ctx, stopwatch.Queue)
		unlock, err := m.inTurn(ctx, op, inst.UUID)
		queued()
		if err != nil {
			return nil, fmt.Errorf("wait for other operations on the instance: %w", err)
		}
		defer unlock()
	}
	return body(ctx, inst, args)
}

// inTurn waits for the other operations on an instance.
func (m *Manager) inTurn(ctx context.Context, op operation, uuid string) (unlock func(), err error) {
	if !op.again {
		return m.locks.Lock(ctx, uuid)
	}
	err = m.await(ctx, func(ctx context.Context) (err error) {
		unlock, err = m.locks.Lock(ctx, uuid)
		return err
	})
	return unlock, err
}

// checkOurs refuses an instance of another host, as a message that went astray has: what is done here would be
// told of a guest that runs elsewhere. nova-compute has no such check and mostly ends in the same class, from its driver.
func (m *Manager) checkOurs(inst *object.Instance) error {
	if inst.Host != "" && inst.Host != m.opts.Host {
		return exception.InstanceNotFound(inst.UUID)
	}
	return nil
}

// settle reverts the task state and records the fault of a failed operation, and
// gives the error its Nova class.
func (m *Manager) settle(ctx context.Context, op operation, inst *object.Instance, err error) error {
	err = novaError(inst, err)
	log := reqctx.Log(ctx).WithError(err)
	// The instance belongs to another operation now: nothing of it is ours to change.
	if exception.Is(err, "UnexpectedTaskStateError") {
		log.Info("operation ended because the instance's state changed meanwhile")
		return err
	}
	if leaving(ctx, err) {
		log.Warning("operation cut off by the end of the agent; its next start completes it")
		return err
	}
	ctx = context.WithoutCancel(ctx)
	// An instance whose guest is not here is not found either, and keeps its row.
	if op.fault && !exception.Is(err, "InstanceNotFound") {
		m.recordFault(ctx, inst, err)
	}
	if op.revert {
		saveErr := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": nil})
		if saveErr != nil && !exception.Is(saveErr, "InstanceNotFound") {
			log.WithField("save_error", saveErr).Warning("task state not reset")
		}
	}
	m.Notify.Exception(ctx, op.method, inst, err)
	return err
}

// startEvent opens the action event of an operation. An event that cannot be
// opened does not stop the work: it is history, not state.
func (m *Manager) startEvent(ctx context.Context, uuid, event string) {
	if err := m.Conductor.StartEvent(ctx, uuid, "compute_"+event, m.opts.Host); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("action event not started")
	}
}

// finishEvent closes the action event with the operation's outcome.
func (m *Manager) finishEvent(ctx context.Context, uuid, event string, failure error) {
	var value, trace *string
	if failure != nil {
		v, t := failure.Error(), exception.Traceback(failure)
		value, trace = &v, &t
	}
	ctx = context.WithoutCancel(ctx)
	finish := func() error { return m.Conductor.FinishEvent(ctx, uuid, "compute_"+event, value, trace) }
	err := finish()
	if exception.Is(err, "InstanceActionEventNotFound") { // an earlier process took it on, and ended before it began
		m.startEvent(ctx, uuid, event)
		err = finish()
	}
	if err != nil && !exception.Is(err, "InstanceActionNotFound") {
		reqctx.Log(ctx).WithError(err).Warning("action event not finished")
	}
}

// recordFault stores what `openstack server show` gives as the instance's fault
// (nova/compute/utils.py:add_instance_fault_from_exc).
func (m *Manager) recordFault(ctx context.Context, inst *object.Instance, failure error) {
	code, message := exception.Describe(failure)
	fault := &object.InstanceFault{InstanceUUID: inst.UUID, Code: code, Host: m.opts.Host, Message: message}
	if code == 500 {
		fault.Details = exception.Traceback(failure)
	}
	if err := m.Conductor.CreateFault(context.WithoutCancel(ctx), fault); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("instance fault not stored")
	}
}

// errPanic is a programmer's mistake. What the log says of it is no user's business.
var errPanic = errors.New("the agent has met a fault of its own, of which its log tells")

// protect runs fn and turns a panic into an error: a programmer's mistake in one
// background operation must not end the agent under the other guests.
func protect(ctx context.Context, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			reqctx.Log(ctx).WithField("panic", fmt.Sprint(p)).WithField("stack", string(debug.Stack())).Error("operation panicked")
			err = errPanic
		}
	}()
	return fn()
}

// withTimeout bounds a step, with cause as the reason; zero means that ctx alone bounds it.
func withTimeout(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, cause)
}
