package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/compute/console"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// ServeConsoles serves the guests' serial consoles until ctx ends.
func (m *Manager) ServeConsoles(ctx context.Context) error {
	if m.consoles == nil {
		return nil
	}
	return m.consoles.Run(ctx)
}

func (m *Manager) consoleOutput(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	return console.Output(ctx, m.Driver, inst, args)
}

func (m *Manager) serialConsole(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	if m.consoles == nil {
		return nil, noConsole(args)
	}
	return m.consoles.Authorize(ctx, inst, args)
}

func (m *Manager) validateConsolePort(_ context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	return m.consoles.Admits(inst, args)
}
