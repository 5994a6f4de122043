package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// refusal says how a method that a container cannot serve is refused.
type refusal struct {
	event         bool   // the method's action event is opened and closed with the error
	fault, revert bool   // as in operation
	notify        string // action whose start is told before the refusal; "": none
	err           func(args rpc.Args) error
	// undo takes back what the caller prepared for the method; nil: nothing.
	undo func(ctx context.Context, m *Manager, inst *object.Instance, args rpc.Args)
}

// refuse makes the handler of a refused method. With an instance in its arguments the
// event, fault and task state are dealt with as for any failed operation.
func (m *Manager) refuse(method string, r refusal) rpc.Handler {
	op := operation{method: method, fault: r.fault, revert: r.revert}
	if r.event {
		op.event = method
	}
	refused := m.onInstance(op, func(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
		if r.notify != "" {
			m.notifyInstance(ctx, inst, r.notify, "start")
		}
		if r.undo != nil {
			r.undo(ctx, m, inst, args)
		}
		return nil, r.err(args)
	})
	return func(ctx context.Context, args rpc.Args) (any, error) {
		if _, ok := args["instance"]; !ok {
			return nil, r.err(args)
		}
		return refused(ctx, args)
	}
}

func unsupported(what string) func(rpc.Args) error {
	return func(rpc.Args) error { return exception.NotImplemented(what + " is not supported by the lxc driver") }
}

func precheck(what string) func(rpc.Args) error {
	return func(rpc.Args) error { return exception.MigrationPreCheck(what + " is not supported by the lxc driver") }
}

func noConsole(args rpc.Args) error {
	var kind string
	_ = args.Decode("console_type", &kind) // only for the text
	return exception.ConsoleTypeUnavailable(kind)
}

func instanceError(build func(uuid string) error) func(rpc.Args) error {
	return func(args rpc.Args) error {
		inst, err := instanceArgument(args)
		if err != nil {
			return err
		}
		return build(inst.UUID)
	}
}
