package compute

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// tellScheduler sends the schedulers what they keep of this host's instances, for
// affinity; only with [filter_scheduler] track_instance_changes. They ask again by
// themselves, so a message that is lost is only logged.
func (m *Manager) tellScheduler(ctx context.Context, cast func(ctx context.Context) error) {
	if !m.opts.TrackInstanceChanges {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, castTimeout)
	defer cancel()
	if err := cast(ctx); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("schedulers not told of this host's instances")
	}
}

// syncScheduler tells the schedulers which instances are here
// (nova/compute/manager.py:_sync_scheduler_instance_info). The tracker knows them: no call is needed.
func (m *Manager) syncScheduler(ctx context.Context) error {
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.SyncInstanceInfo(ctx, m.opts.Host, m.Tracker.Instances())
	})
	return nil
}
