package compute

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// terminateInstance deletes an instance in any state (nova/compute/manager.py:terminate_instance).
// A build of it that still runs is cancelled first, and so are a snapshot, a rebuild and whatever else
// runs detached: a delete does not wait for a download or an upload.
func (m *Manager) terminateInstance(ctx context.Context, args rpc.Args) (any, error) {
	var ownPorts []string
	if doomed, err := instanceArgument(args); err == nil {
		ownPorts = m.journal.Cancel(doomed.UUID, errDeleted)
		m.endOffer(doomed.UUID)
	}
	op := operation{method: "terminate_instance", event: "terminate_instance", fault: true, revert: true, lock: true, ours: true}
	return m.onInstance(op, func(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
		return nil, m.deleteInstance(ctx, inst, ownPorts)
	})(ctx, args)
}

// deleteInstance removes the guest, its ports, its usage and its row. A failure puts
// the instance into ERROR, from where it can be deleted again. ownPorts are the user's
// as a build knows them that did not come to the info cache.
func (m *Manager) deleteInstance(ctx context.Context, inst *object.Instance, ownPorts []string) error {
	err := m.deleteSteps(ctx, inst, ownPorts)
	switch {
	case err == nil:
		reqctx.Log(ctx).Info("instance deleted")
		return nil
	case exception.Is(err, "InstanceNotFound"):
		reqctx.Log(ctx).WithError(err).Info("instance was deleted already")
		return nil
	case leaving(ctx, err):
		return err
	}
	err = novaError(inst, err)
	saveErr := m.Conductor.SaveInstance(context.WithoutCancel(ctx), inst, map[string]any{"vm_state": object.VMStateError})
	if saveErr != nil {
		reqctx.Log(ctx).WithError(saveErr).Warning("error state not stored")
	}
	return err
}

func (m *Manager) deleteSteps(ctx context.Context, inst *object.Instance, ownPorts []string) error {
	m.waiters.Drop(inst.UUID)
	if err := m.loadPorts(ctx, inst); err != nil {
		return err
	}
	m.notifyInstance(ctx, inst, "delete", "start")
	m.notifyInstance(ctx, inst, "shutdown", "start")
	// A guest that cannot be stopped keeps its ports: their addresses are not free.
	if err := m.destroyGuest(ctx, inst.UUID); err != nil {
		return err
	}
	// Neutron drops the ports while the host is cleared: neither needs the other.
	var g errgroup.Group
	g.Go(func() error { return m.removeTraces(ctx, inst.UUID, vifsOfInfo(inst.UUID, inst.NetworkInfo())) })
	g.Go(func() error { return m.deallocateNetwork(ctx, inst, ownPorts) })
	if err := g.Wait(); err != nil {
		return err
	}
	if inst.InfoCache != nil { // what is told from here on; the row's own goes with the row
		inst.InfoCache.NetworkInfo = nil
	}
	m.notifyInstance(ctx, inst, "shutdown", "end")

	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"vm_state": object.VMStateDeleted, "task_state": nil, "power_state": int(driver.PowerStateNoState), "terminated_at": object.Now(),
	})
	if err != nil && !exception.Is(err, "InstanceNotFound") {
		return err
	}
	m.completeDeletion(ctx, inst)
	if err != nil {
		return err
	}
	if err := m.Conductor.DestroyInstance(ctx, inst); err != nil {
		return err
	}
	m.notifyInstance(ctx, inst, "delete", "end")
	return nil
}

// loadPorts makes sure of the list of ports. A request that was made while the build ended
// may come with an empty one, and without the list the user's own ports would be deleted.
func (m *Manager) loadPorts(ctx context.Context, inst *object.Instance) error {
	if len(inst.NetworkInfo()) > 0 {
		return nil
	}
	err := m.Conductor.RefreshInfoCache(ctx, inst)
	if exception.Is(err, "NotFound") {
		return nil
	}
	return err
}

// completeDeletion takes the instance out of the books: usage, allocation and the
// scheduler's memory (nova/compute/manager.py:_complete_deletion). The conductor's
// destroy removes the row's children, console tokens among them.
func (m *Manager) completeDeletion(ctx context.Context, inst *object.Instance) {
	var g errgroup.Group
	g.Go(func() error {
		m.Tracker.Forget(ctx, inst.UUID)
		return nil
	})
	g.Go(func() error {
		if err := m.releaseAllocation(ctx, inst.UUID); err != nil {
			reqctx.Log(ctx).WithError(err).Error("allocation not deleted; the next audit removes it")
		}
		return nil
	})
	m.tellScheduler(ctx, func(ctx context.Context) error { return m.Conductor.DeleteInstanceInfo(ctx, m.opts.Host, inst.UUID) })
	_ = g.Wait() // both log what goes wrong and let the deletion go on
}

// deallocateNetwork deletes the ports that the boot created and unbinds the user's own
// (nova/network/neutron.py:deallocate_for_instance).
func (m *Manager) deallocateNetwork(ctx context.Context, inst *object.Instance, own []string) error {
	info := inst.NetworkInfo()
	for i := range info {
		if info[i].PreserveOnDelete {
			own = append(own, info[i].ID)
		}
	}
	if err := m.Neutron.Deallocate(ctx, inst.UUID, own); err != nil {
		return networkError(inst, err)
	}
	return nil
}
