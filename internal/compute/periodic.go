package compute

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// defaultInterval is the spacing of a task whose option is 0
// (oslo_service/periodic_task.py:DEFAULT_INTERVAL).
const defaultInterval = time.Minute

// task is periodic work (nova/compute/manager.py:@periodic_task).
type task struct {
	name     string
	interval time.Duration // 0: defaultInterval, negative: off
	run      func(ctx context.Context) error
}

func (m *Manager) tasks() []task {
	return []task{
		{"update_available_resource", m.opts.UpdateResourcesInterval, m.Tracker.Audit},
		{"sync_power_states", m.opts.SyncPowerStateInterval, m.syncPowerStates},
		{"heal_instance_info_cache", m.opts.HealInfoCacheInterval, m.healInfoCache},
		{"sync_scheduler_instance_info", m.opts.SchedulerSyncInterval, m.syncScheduler},
		{"cleanup_running_deleted_instances", m.opts.RunningDeletedInterval, m.reapDeleted},
	}
}

// RunPeriodicTasks runs every task at its interval until ctx ends. The first run of each
// comes after a random part of periodic_fuzzy_delay, so that hosts started together
// do not ask the conductor together.
func (m *Manager) RunPeriodicTasks(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range m.tasks() {
		if t.interval < 0 {
			continue
		}
		if t.interval == 0 {
			t.interval = defaultInterval
		}
		g.Go(func() error { return m.runTask(ctx, t) })
	}
	return g.Wait()
}

func (m *Manager) runTask(ctx context.Context, t task) error {
	wait := min(t.interval, time.Duration(rand.Int64N(int64(m.opts.PeriodicFuzzyDelay)+1))) //nolint:gosec // spreading load needs no secrecy
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		tctx := reqctx.WithField(adminContext(ctx), "task", t.name)
		if err := protect(func() error { return t.run(tctx) }); err != nil && ctx.Err() == nil {
			reqctx.Log(tctx).WithError(err).Warning("periodic task failed; it runs again at its next turn")
		}
		timer.Reset(t.interval)
	}
}

// healInfoCache refreshes the info cache of one instance a run, in turn
// (nova/compute/manager.py:_heal_instance_info_cache).
func (m *Manager) healInfoCache(ctx context.Context) error {
	uuid, ok := m.Tracker.NextInstance()
	if !ok {
		return nil
	}
	inst, err := m.Conductor.InstanceByUUID(ctx, uuid, "system_metadata", "info_cache", "flavor")
	if err != nil {
		if isGone(err) {
			return nil
		}
		return err
	}
	if inst.Host != m.opts.Host || inst.TaskState != object.TaskStateNone || inst.VMState == object.VMStateBuilding {
		return nil
	}
	_, err = m.refreshNetworkInfo(reqctx.WithField(ctx, "instance", uuid), inst)
	return err
}

// syncScheduler tells the schedulers which instances are here, for affinity
// (nova/compute/manager.py:_sync_scheduler_instance_info). The tracker knows them: no call is needed.
func (m *Manager) syncScheduler(ctx context.Context) error {
	if !m.opts.TrackInstanceChanges {
		return nil
	}
	return m.Conductor.SyncInstanceInfo(ctx, m.opts.Host, m.Tracker.Instances())
}

// reapDeleted removes guests whose rows are deleted, after a local delete by the API while
// the agent was away (nova/compute/manager.py:_cleanup_running_deleted_instances).
func (m *Manager) reapDeleted(ctx context.Context) error {
	local, err := m.localInstances(ctx)
	if err != nil {
		return err
	}
	for _, uuid := range m.Tracker.Instances() {
		delete(local, uuid)
	}
	for uuid := range local {
		ctx := reqctx.WithField(ctx, "instance", uuid)
		gone, err := m.isDeletedInNova(ctx, uuid)
		switch {
		case err != nil:
			reqctx.Log(ctx).WithError(err).Warning("instance not looked up")
			continue
		case !gone:
			continue
		}
		reqctx.Log(ctx).WithField("action", m.opts.RunningDeletedAction).Warning("found a deleted instance on this host")
		switch m.opts.RunningDeletedAction {
		case "reap":
			err = m.removeLeftover(ctx, uuid)
		case "shutdown":
			err = m.powerOff(ctx, uuid, 0)
		}
		if err != nil {
			reqctx.Log(ctx).WithError(err).Error("deleted instance not dealt with")
		}
	}
	return nil
}
