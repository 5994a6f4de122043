package compute

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
)

// TestAuditPeriod: what nova/utils.py:last_completed_audit_period gives, by running it.
func TestAuditPeriod(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ unit, now, begin, end string }{
		{"hour", "2026-03-10 00:00:00", "2026-03-09 22:00:00", "2026-03-09 23:00:00"},
		{"hour", "2026-01-01 00:10:00", "2025-12-31 23:00:00", "2026-01-01 00:00:00"},
		{"hour", "2026-11-21 16:09:59", "2026-11-21 15:00:00", "2026-11-21 16:00:00"},
		{"hour", "2026-12-31 23:59:59", "2026-12-31 22:00:00", "2026-12-31 23:00:00"},
		{"hour@10", "2026-03-10 00:00:00", "2026-03-09 22:10:00", "2026-03-09 23:10:00"},
		{"hour@10", "2026-01-01 00:10:00", "2025-12-31 22:10:00", "2025-12-31 23:10:00"},
		{"hour@10", "2026-11-21 16:09:59", "2026-11-21 14:10:00", "2026-11-21 15:10:00"},
		{"hour@10", "2026-12-31 23:59:59", "2026-12-31 22:10:00", "2026-12-31 23:10:00"},
		{"day", "2026-03-10 00:00:00", "2026-03-08 00:00:00", "2026-03-09 00:00:00"},
		{"day", "2026-01-01 00:10:00", "2025-12-31 00:00:00", "2026-01-01 00:00:00"},
		{"day", "2026-11-21 16:09:59", "2026-11-20 00:00:00", "2026-11-21 00:00:00"},
		{"day", "2026-12-31 23:59:59", "2026-12-30 00:00:00", "2026-12-31 00:00:00"},
		{"day@18", "2026-03-10 00:00:00", "2026-03-08 18:00:00", "2026-03-09 18:00:00"},
		{"day@18", "2026-01-01 00:10:00", "2025-12-30 18:00:00", "2025-12-31 18:00:00"},
		{"day@18", "2026-11-21 16:09:59", "2026-11-19 18:00:00", "2026-11-20 18:00:00"},
		{"day@18", "2026-12-31 23:59:59", "2026-12-30 18:00:00", "2026-12-31 18:00:00"},
		{"month", "2026-03-10 00:00:00", "2026-02-01 00:00:00", "2026-03-01 00:00:00"},
		{"month", "2026-01-01 00:10:00", "2025-12-01 00:00:00", "2026-01-01 00:00:00"},
		{"month", "2026-11-21 16:09:59", "2026-10-01 00:00:00", "2026-11-01 00:00:00"},
		{"month", "2026-12-31 23:59:59", "2026-11-01 00:00:00", "2026-12-01 00:00:00"},
		{"month@15", "2026-03-10 00:00:00", "2026-01-15 00:00:00", "2026-02-15 00:00:00"},
		{"month@15", "2026-01-01 00:10:00", "2025-11-15 00:00:00", "2025-12-15 00:00:00"},
		{"month@15", "2026-11-21 16:09:59", "2026-10-15 00:00:00", "2026-11-15 00:00:00"},
		{"month@15", "2026-12-31 23:59:59", "2026-11-15 00:00:00", "2026-12-15 00:00:00"},
		{"year", "2026-03-10 00:00:00", "2025-01-01 00:00:00", "2026-01-01 00:00:00"},
		{"year", "2026-01-01 00:10:00", "2025-01-01 00:00:00", "2026-01-01 00:00:00"},
		{"year", "2026-11-21 16:09:59", "2025-01-01 00:00:00", "2026-01-01 00:00:00"},
		{"year", "2026-12-31 23:59:59", "2025-01-01 00:00:00", "2026-01-01 00:00:00"},
		{"year@3", "2026-03-10 00:00:00", "2025-03-01 00:00:00", "2026-03-01 00:00:00"},
		{"year@3", "2026-01-01 00:10:00", "2024-03-01 00:00:00", "2025-03-01 00:00:00"},
		{"year@3", "2026-11-21 16:09:59", "2025-03-01 00:00:00", "2026-03-01 00:00:00"},
		{"year@3", "2026-12-31 23:59:59", "2025-03-01 00:00:00", "2026-03-01 00:00:00"},
	} {
		now, err := time.Parse(auditLayout, c.now)
		require.NoError(t, err)
		begin, end := auditPeriod(c.unit, now)
		require.Equal(t, []string{c.begin, c.end}, []string{begin.Format(auditLayout), end.Format(auditLayout)}, "%s at %s", c.unit, c.now)
	}
}

func TestAuditUsage(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.UsageAudit = UsageAudit{Enabled: true, Period: "hour"} })
	w.nova.ClearLog()
	require.NoError(t, w.auditUsage(t.Context()))
	require.Equal(t, []string{"INFO compute.instance.exists"}, w.sender.all())
	require.Len(t, w.nova.LogOf("TaskLog.begin_task"), 1)
	require.Len(t, w.nova.LogOf("TaskLog.end_task"), 1)

	require.NoError(t, w.auditUsage(t.Context()))
	require.Len(t, w.sender.all(), 1, "a period is told once, over restarts too")

	w.nova.Fail("TaskLog.get", errBoom)
	require.ErrorContains(t, w.auditUsage(t.Context()), "boom")
	off := built(t)
	require.NoError(t, off.auditUsage(t.Context()))
	require.Empty(t, off.nova.Log())
}

func TestAuditUsageThatAnotherBegan(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.UsageAudit = UsageAudit{Enabled: true, Period: "day"} })
	w.nova.Fail("TaskLog.begin_task", novatest.Failure("TaskAlreadyRunning"))
	require.NoError(t, w.auditUsage(t.Context()))
	require.Empty(t, w.sender.all())
}

func TestStuckBuilds(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.InstanceBuildTimeout = time.Hour })
	w.nova.Update(uuid, map[string]any{"vm_state": "building", "task_state": "spawning", "created_at": time.Now().UTC().Add(-2 * time.Hour).Format(time.RFC3339)})
	require.NoError(t, w.failStuckBuilds(t.Context()))
	require.Equal(t, "error/spawning/"+testHost, w.nova.States(uuid), "as nova-compute leaves it")

	w.nova.Update(uuid, map[string]any{"vm_state": "building", "created_at": time.Now().UTC().Format(time.RFC3339)})
	require.NoError(t, w.failStuckBuilds(t.Context()))
	require.Equal(t, "building/spawning/"+testHost, w.nova.States(uuid), "it has time")
}

func TestExpiredConsoleTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.InstanceDeleteInterval = 7 * time.Minute })
	for _, task := range w.tasks() {
		if task.name == "cleanup_expired_console_auth_tokens" {
			require.Equal(t, 7*time.Minute, task.interval)
			require.NoError(t, task.run(t.Context()))
		}
	}
	require.Len(t, w.nova.LogOf("ConsoleAuthToken.clean_expired_console_auths"), 1)
}
