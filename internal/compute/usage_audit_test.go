package compute

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/usage"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
)

func TestAuditUsage(t *testing.T) {
	t.Parallel()
	w := built(t, func(o *Options) { o.UsageAudit = usage.Settings{Enabled: true, Period: "month"} })
	w.nova.ClearLog()
	require.NoError(t, w.auditUsage(t.Context()))
	require.Equal(t, []string{"INFO compute.instance.exists"}, w.sender.all())
	require.NotContains(t, fmt.Sprintf("%s", w.sender.told), "fixed_ips", "as with nova-compute")
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
	w := built(t, func(o *Options) { o.UsageAudit = usage.Settings{Enabled: true, Period: "day"} })
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
