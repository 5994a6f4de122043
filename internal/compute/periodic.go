package compute

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
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
	heal := m.opts.HealInfoCacheInterval
	if heal == 0 {
		heal = -1 // of this option alone 0 is off
	}
	return []task{
		{"update_available_resource", m.opts.UpdateResourcesInterval, m.Tracker.Audit},
		{"sync_power_states", m.opts.SyncPowerStateInterval, m.syncPowerStates},
		{"heal_instance_info_cache", heal, m.healInfoCache},
		{"sync_scheduler_instance_info", m.opts.SchedulerSyncInterval, m.syncScheduler},
		{"cleanup_running_deleted_instances", m.opts.RunningDeletedInterval, m.reapDeleted},
		{"reclaim_queued_deletes", 0, m.reclaimDeleted},
		{"poll_rescued_instances", 0, m.unrescueExpired},
		{"poll_shelved_instances", m.opts.ShelvedPollInterval, m.offloadShelved},
		{"check_instance_build_time", 0, m.failStuckBuilds},
		{"instance_usage_audit", 0, m.auditUsage},
		{"cleanup_expired_console_auth_tokens", m.opts.InstanceDeleteInterval, m.Conductor.CleanExpiredConsoleTokens},
		{"run_image_cache_manager_pass", m.opts.ImageCacheInterval, m.manageImageCache},
		{"poll_unconfirmed_resizes", 0, m.confirmOldResizes},
		{"cleanup_incomplete_migrations", incompleteInterval, m.settleArrivals},
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
		began, outcome := time.Now(), "ok"
		if err := protect(tctx, func() error { return t.run(tctx) }); err != nil && ctx.Err() == nil {
			outcome = "error"
			reqctx.Log(tctx).WithError(err).Warning("periodic task failed; it runs again at its next turn")
		}
		taskSeconds.WithLabelValues(t.name, outcome).Observe(time.Since(began).Seconds())
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
	if m.journal.Building(uuid) {
		return nil
	}
	_, err = m.refreshNetworkInfo(reqctx.WithField(ctx, "instance", uuid), inst)
	return err
}

// reapDeleted removes guests whose rows are deleted, after a local delete by the API while
// the agent was away (nova/compute/manager.py:_cleanup_running_deleted_instances), and whatever else is left of them:
// nova-compute has another task for their files (_run_pending_deletes).
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
		inst, err := m.deletedInNova(ctx, uuid)
		if err != nil {
			reqctx.Log(ctx).WithError(err).Warning("instance not looked up")
			continue
		}
		if inst == nil || m.deletedJustNow(inst) {
			continue
		}
		reqctx.Log(ctx).WithField("action", m.opts.RunningDeletedAction).Warning("found a deleted instance on this host")
		switch m.opts.RunningDeletedAction {
		case "reap":
			err = m.ifNotBuilding(ctx, uuid, m.removeLeftover)
		case "shutdown":
			err = m.ifNotBuilding(ctx, uuid, func(ctx context.Context, uuid string) error { return m.powerOff(ctx, uuid, 0) })
		}
		if err != nil {
			reqctx.Log(ctx).WithError(err).Error("deleted instance not dealt with")
		}
	}
	return nil
}

// reclaimDeleted deletes soft-deleted servers whose time is over
// (nova/compute/manager.py:_reclaim_queued_deletes).
func (m *Manager) reclaimDeleted(ctx context.Context) error {
	if m.opts.ReclaimInstanceInterval <= 0 {
		return nil
	}
	queued, err := m.Conductor.InstancesByFilters(ctx, map[string]any{
		"vm_state": object.VMStateSoftDelete, "task_state": nil, "host": m.opts.Host,
	}, "info_cache", "metadata", "system_metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list soft-deleted instances: %w", err)
	}
	for _, inst := range queued {
		if time.Since(inst.DeletedAt.Time) < m.opts.ReclaimInstanceInterval {
			continue
		}
		ctx := reqctx.WithField(ctx, "instance", inst.UUID)
		reqctx.Log(ctx).Info("reclaiming a soft-deleted instance")
		if err := m.reclaim(ctx, inst); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("soft-deleted instance not reclaimed; the next turn tries again")
		}
	}
	return nil
}

// reclaim deletes an instance unless its owner has restored it in the meantime.
func (m *Manager) reclaim(ctx context.Context, inst *object.Instance) error {
	unlock, err := m.locks.Lock(ctx, inst.UUID)
	if err != nil {
		return err
	}
	defer unlock()
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStateDeleting},
		conductor.ExpectVM(object.VMStateSoftDelete), expectNoTask())
	if err != nil {
		return err
	}
	return m.deleteInstance(ctx, inst, nil)
}

// failStuckBuilds puts instances into ERROR that have been building for longer than
// instance_build_timeout. A build of this process ends itself at that time and tells why; what is found
// here lost its build in another way (nova/compute/manager.py:_check_instance_build_time).
func (m *Manager) failStuckBuilds(ctx context.Context) error {
	if m.opts.InstanceBuildTimeout <= 0 {
		return nil
	}
	building, err := m.Conductor.InstancesByFilters(ctx, map[string]any{"vm_state": object.VMStateBuilding, "host": m.opts.Host})
	if err != nil {
		return fmt.Errorf("list building instances: %w", err)
	}
	for _, inst := range building {
		if time.Since(inst.CreatedAt.Time) < m.opts.InstanceBuildTimeout || m.journal.Building(inst.UUID) {
			continue
		}
		log := reqctx.Log(ctx).WithField("instance", inst.UUID)
		err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError}, conductor.ExpectVM(object.VMStateBuilding))
		if err != nil {
			log.WithError(err).Info("instance that was stuck in its build left as it is")
			continue
		}
		log.WithField("created", inst.CreatedAt.Time).Warning("build timed out; put the instance into error")
	}
	return nil
}
