package compute

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
)

// restTimeout bounds the copy of what changed while the guest ran. It is generous: the source gives up
// much sooner when the destination shows no sign of life.
const restTimeout = time.Hour

// tellTimeout bounds the message to a destination that may be gone, while the guest waits to be started.
const tellTimeout = 3 * time.Second

// errStoppedMidway ends a move whose source was stopped while its guest was.
var errStoppedMidway = errors.New("the agent was stopped while it moved the server to another host")

// resizeInstance gives an instance of this host to the destination (nova/compute/manager.py:resize_instance).
// Until the save that names the new host, every failure puts the guest back to work here.
func (m *Manager) resizeInstance(ctx context.Context, mv *move) error {
	if err := m.loadMove(ctx, mv); err != nil {
		return err
	}
	if mv.resumed {
		goOn, err := m.resizeResumable(ctx, mv)
		if err != nil || !goOn {
			return err
		}
	}
	err := m.resizeSteps(ctx, mv)
	if err != nil {
		cause := context.Cause(ctx)
		return m.resizeFailed(context.WithoutCancel(ctx), mv, err, cause)
	}
	return nil
}

// resizeResumable finds out how far an interrupted resize_instance came. One between two hosts is taken back, since
// the copy broke off with the agent; unless the instance is the destination's by now, which is told again.
func (m *Manager) resizeResumable(ctx context.Context, mv *move) (bool, error) {
	if err := m.Conductor.RefreshInstance(ctx, mv.inst); err != nil {
		return false, err
	}
	task := mv.inst.TaskState
	switch {
	case mv.inst.Host == mv.migration.DestCompute && task == object.TaskStateResizeMigrated:
		reqctx.Log(ctx).Info("telling the destination again of an instance that is its own")
		return false, m.castFinish(ctx, mv)
	case mv.inst.Host != m.opts.Host, task != object.TaskStateResizePrep && task != object.TaskStateResizeMigrating:
		return false, nil
	case m.same(mv):
		return true, nil
	}
	err := errStoppedMidway
	if task == object.TaskStateResizeMigrating {
		// A guest that was told to end may still be at it, and would be gone soon after it is found running.
		err = errors.Join(err, m.stopForMove(ctx, mv))
	}
	return false, m.resizeFailed(ctx, mv, err, nil)
}

func (m *Manager) resizeSteps(ctx context.Context, mv *move) error {
	inst := mv.inst
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return networkError(inst, err)
	}
	if err := m.saveMigration(ctx, mv, migrationMigrating); err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStateResizeMigrating},
		mv.expectTask(object.TaskStateResizePrep, object.TaskStateResizeMigrating))
	if err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "resize", Phase: "start", Instance: inst, NetworkInfo: info, BDMs: noVolumes})
	if !m.same(mv) {
		if err := m.leave(ctx, mv); err != nil {
			return err
		}
		if err := m.Neutron.ActivateBindings(ctx, portIDs(info), mv.migration.DestCompute); err != nil {
			return networkError(inst, err)
		}
	}
	if err := m.saveMigration(ctx, mv, migrationPostMigrating); err != nil {
		return err
	}
	changes := flavors(inst.Flavor, inst.Flavor, mv.flavor)
	changes["task_state"] = object.TaskStateResizeMigrated
	changes["host"], changes["node"], changes["compute_id"] = mv.migration.DestCompute, mv.migration.DestNode, mv.migration.DestComputeID
	err = m.Conductor.SaveInstance(ctx, inst, changes, mv.expectTask(object.TaskStateResizeMigrating))
	if err != nil {
		return err
	}
	// The instance is the destination's: nothing takes it back from here on but a revert.
	ctx = context.WithoutCancel(ctx)
	if !m.same(mv) {
		m.Tracker.Left(ctx, inst, inst.Flavor, mv.migration.UUID)
		m.endOffer(inst.UUID)
	}
	if err := m.castFinish(ctx, mv); err != nil {
		return m.failMove(ctx, mv, fmt.Errorf("tell the destination: %w", err))
	}
	m.Notify.Instance(ctx, notify.Event{Action: "resize", Phase: "end", Instance: inst, NetworkInfo: info, BDMs: noVolumes})
	return nil
}

func (m *Manager) castFinish(ctx context.Context, mv *move) error {
	return m.castMove(ctx, mv.migration.DestCompute, true, "finish_resize", mv, map[string]any{"disk_info": diskInfo()}, "image", "request_spec")
}

func portIDs(info object.NetworkInfo) []string {
	ids := make([]string, 0, len(info))
	for i := range info {
		ids = append(ids, info[i].ID)
	}
	return ids
}

// leave stops the guest, lets the rest of its root disk go to the destination and unplugs its ports.
func (m *Manager) leave(ctx context.Context, mv *move) error {
	uuid := mv.inst.UUID
	offer := m.departures.of(uuid)
	if offer == nil || offer.Ticket.ID != mv.migration.UUID {
		return errors.New("no root disk is offered for this migration; the agent was started anew, perhaps")
	}
	began := time.Now()
	if err := m.stopForMove(ctx, mv); err != nil {
		return err
	}
	stopped := time.Now()
	rest, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	if err := offer.Finish(rest); err != nil {
		return fmt.Errorf("copy the rest of the root disk: %w", err)
	}
	if err := m.unmountDisks(ctx, uuid); err != nil { // the last pass may have mounted it
		return err
	}
	reqctx.Log(ctx).WithField("stop_ms", stopped.Sub(began).Milliseconds()).WithField("copy_ms", time.Since(stopped).Milliseconds()).
		Info("guest stopped, root disk is on the destination")
	return m.unplugRecorded(ctx, uuid)
}

// stopForMove ends the guest, which may have ended already.
func (m *Manager) stopForMove(ctx context.Context, mv *move) error {
	timeout := time.Duration(0)
	if mv.clean {
		timeout = m.shutdownTimeout(mv.inst)
	}
	return m.powerOff(ctx, mv.inst.UUID, timeout)
}

// unplugRecorded takes an instance's ports off this host; its record says so then.
func (m *Manager) unplugRecorded(ctx context.Context, uuid string) error {
	rec, ok, err := m.record(uuid)
	if err != nil || !ok {
		return err
	}
	for _, v := range rec.VIFs {
		err := m.Plugger.Unplug(ctx, v)
		if err != nil && !errors.Is(err, vif.ErrUnsupported) && !errors.Is(err, vif.ErrNotBound) {
			return fmt.Errorf("unplug port %s: %w", v.PortID, err)
		}
	}
	rec.VIFs = nil
	return m.saveRecord(rec)
}

func (m *Manager) endOffer(uuid string) {
	if offer := m.departures.set(uuid, nil); offer != nil {
		offer.Close()
	}
}

// resizeFailed puts the guest back to work on this host and ends the move. cause is why the step was cancelled, if it was.
func (m *Manager) resizeFailed(ctx context.Context, mv *move, err, cause error) error {
	m.endOffer(mv.inst.UUID)
	if errors.Is(cause, errDeleted) || isGone(err) {
		m.dropAllocation(ctx, mv)
		return errDeleted
	}
	log := reqctx.Log(ctx).WithError(err)
	if mv.inst.Host != m.opts.Host { // it failed after the change of hosts
		return err
	}
	m.revertAllocation(ctx, mv)
	if !m.same(mv) {
		defer m.tellDropped(ctx, mv) // after the guest is back
	}
	if !m.same(mv) && stateBefore(mv.inst) != object.VMStateStopped {
		info, infoErr := m.refreshNetworkInfo(ctx, mv.inst)
		if infoErr != nil {
			info = mv.inst.NetworkInfo()
		}
		if startErr := m.powerOn(ctx, mv.inst, info); startErr != nil {
			log.WithField("start_error", startErr).Error("guest of a move that failed does not start again")
			return m.failMove(ctx, mv, errors.Join(err, startErr))
		}
		log.Warning("move failed; the guest runs on this host again")
	}
	if dropErr := m.Conductor.DropMigrationContext(ctx, mv.inst); dropErr != nil {
		log.WithField("save_error", dropErr).Warning("migration context not dropped")
	}
	m.Notify.Instance(ctx, notify.Event{Action: "resize", Phase: "error", Instance: mv.inst, Err: novaError(mv.inst, err)})
	return m.failMove(ctx, mv, &rolledBack{err})
}

// tellDropped lets the destination remove what came. One that is not there finds out by itself.
func (m *Manager) tellDropped(ctx context.Context, mv *move) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	var done bool
	args := map[string]any{"instance_uuid": mv.inst.UUID, "migration_uuid": mv.migration.UUID}
	if err := m.Conductor.CallAgent(ctx, mv.migration.DestCompute, "drop_root", args, &done); err != nil {
		reqctx.Log(ctx).WithError(err).Info("destination not told that the move came to nothing")
	}
}
