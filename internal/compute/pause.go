package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// pauseInstance freezes a guest (nova/compute/manager.py:pause_instance).
func (m *Manager) pauseInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	m.notifyInstance(ctx, inst, "pause", "start")
	if err := m.Driver.Pause(ctx, inst.UUID); err != nil {
		return nil, err
	}
	return nil, m.savePower(ctx, inst, object.VMStatePaused, object.TaskStatePausing, "pause")
}

// unpauseInstance lets a frozen guest go on (nova/compute/manager.py:unpause_instance).
func (m *Manager) unpauseInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	m.notifyInstance(ctx, inst, "unpause", "start")
	if err := m.Driver.Unpause(ctx, inst.UUID); err != nil {
		return nil, err
	}
	return nil, m.savePower(ctx, inst, object.VMStateActive, object.TaskStateUnpausing, "unpause")
}
