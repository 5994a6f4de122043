package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/rpc"
)

// softDeleteInstance stops a guest that may still be restored (nova/compute/manager.py:soft_delete_instance).
func (m *Manager) softDeleteInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	m.notifyInstance(ctx, inst, "soft_delete", "start")
	if err := m.powerOff(ctx, inst.UUID, 0); err != nil {
		return nil, err
	}
	return nil, m.savePower(ctx, inst, object.VMStateSoftDelete, object.TaskStateSoftDeleting, "soft_delete")
}

// restoreInstance starts a soft-deleted guest again (nova/compute/manager.py:restore_instance).
func (m *Manager) restoreInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	m.notifyInstance(ctx, inst, "restore", "start")
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return nil, networkError(inst, err)
	}
	if err := m.powerOn(ctx, inst, info); err != nil {
		return nil, err
	}
	return nil, m.savePower(ctx, inst, object.VMStateActive, object.TaskStateRestoring, "restore")
}
