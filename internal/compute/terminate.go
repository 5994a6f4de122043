package compute

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
	"github.com/compute-agent/compute-agent/rpc"
)

// terminateInstance deletes an instance in any state (nova/compute/manager.py:terminate_instance).
// A build of it that still runs is cancelled first: a delete does not wait for a download.
func (m *Manager) terminateInstance(ctx context.Context, args rpc.Args) (any, error) {
	op := operation{method: "terminate_instance", event: "terminate_instance", fault: true, revert: true, lock: true}
	return m.onInstance(op, func(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
		return nil, m.deleteInstance(ctx, inst)
	})(m.overtakeBuild(ctx, args), args)
}

// overtakeBuild cancels the build of the instance that a message is about.
func (m *Manager) overtakeBuild(ctx context.Context, args rpc.Args) context.Context {
	var inst object.Instance
	if args.Decode("instance", &inst) == nil {
		m.cancelBuild(inst.UUID, errDeleted)
	}
	return ctx
}

// deleteInstance removes the guest, its ports, its usage and its row. A failure puts
// the instance into ERROR, from where it can be deleted again.
func (m *Manager) deleteInstance(ctx context.Context, inst *object.Instance) error {
	ctx, watch := stopwatch.With(ctx)
	err := m.deleteSteps(ctx, inst)
	switch {
	case err == nil:
		reqctx.Log(ctx).WithFields(watch.Fields()).Info("instance deleted")
		return nil
	case exception.Is(err, "InstanceNotFound"):
		reqctx.Log(ctx).WithError(err).Info("instance was deleted already")
		return nil
	}
	if saveErr := m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError}); saveErr != nil {
		reqctx.Log(ctx).WithError(saveErr).Warning("error state not stored")
	}
	return err
}

func (m *Manager) deleteSteps(ctx context.Context, inst *object.Instance) error {
	m.waiters.drop(inst.UUID)
	m.Notify.Instance(ctx, notify.Event{Action: "delete", Phase: "start", Instance: inst})
	m.Notify.Instance(ctx, notify.Event{Action: "shutdown", Phase: "start", Instance: inst})

	// Neutron drops the ports while the host is cleared: neither needs the other,
	// and a port without a guest is what both lead to.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.removeFromHost(gctx, inst.UUID, vifsOfInfo(inst.UUID, inst.NetworkInfo())) })
	g.Go(func() error { return m.deallocateNetwork(gctx, inst) })
	if err := g.Wait(); err != nil {
		if errors.Is(err, driver.ErrTimeout) {
			return exception.InstancePowerOffFailure(err.Error())
		}
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "shutdown", Phase: "end", Instance: inst})

	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"vm_state": object.VMStateDeleted, "task_state": nil, "power_state": int(driver.PowerStateNoState), "terminated_at": object.Now(),
	})
	if err != nil {
		return err
	}
	m.completeDeletion(ctx, inst)
	if err := m.Conductor.DestroyInstance(ctx, inst); err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "delete", Phase: "end", Instance: inst})
	return nil
}

// completeDeletion takes the instance out of the books: usage, allocation and the
// scheduler's memory (nova/compute/manager.py:_complete_deletion). The conductor's
// destroy removes the row's children, console tokens among them.
func (m *Manager) completeDeletion(ctx context.Context, inst *object.Instance) {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		m.Tracker.Forget(gctx, inst.UUID)
		return nil
	})
	g.Go(func() error {
		m.releaseAllocation(gctx, inst.UUID)
		return nil
	})
	if m.opts.TrackInstanceChanges {
		if err := m.Conductor.DeleteInstanceInfo(ctx, m.opts.Host, inst.UUID); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("scheduler not told of the deletion")
		}
	}
	_ = g.Wait() // both log what goes wrong and let the deletion go on
}

// deallocateNetwork deletes the ports that the boot created and unbinds the user's own
// (nova/network/neutron.py:deallocate_for_instance).
func (m *Manager) deallocateNetwork(ctx context.Context, inst *object.Instance) error {
	var own []string
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
