//go:build functional

package functional

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// TestUsageAudit: an audit period that has ended is told once, over a restart too, of the servers that were on the host in it, one that is
// deleted since among them: as nova's own audit tells it. The period is one that ended half an hour ago, so that the test sees no other end.
func TestUsageAudit(t *testing.T) {
	end := time.Now().UTC().Truncate(time.Minute).Add(-30 * time.Minute)
	begin := end.Add(-time.Hour)
	period := fmt.Sprintf("hour@%d", end.Minute())
	young := boot(t, cloud.NewServer{Name: "young", Networks: "none"})
	here := boot(t, cloud.NewServer{Name: "here"})
	gone := boot(t, cloud.NewServer{Name: "gone", Networks: "none"})
	launched := begin.Add(10 * time.Minute).Format(time.DateTime)
	sql(t, fmt.Sprintf("UPDATE nova.instances SET launched_at = '%s' WHERE uuid IN ('%s', '%s')", launched, here.ID, gone.ID))
	remove(t, gone.ID)
	forget := fmt.Sprintf("DELETE FROM nova.task_log WHERE host = '%s'", shared.Host)
	sql(t, forget) // of another run in the same minute
	t.Cleanup(func() { sql(t, forget) })

	trace := listen(t).trace
	withOptions(t, shared, "[DEFAULT]\nperiodic_fuzzy_delay = 0\ninstance_usage_audit = true\ninstance_usage_audit_period = "+period)
	asked := func(count int) {
		t.Helper()
		eventually(t, 30*time.Second, "the agent to ask for the task log", func(context.Context) (bool, error) {
			messages, err := trace.Seen()
			messages = slices.DeleteFunc(messages, func(m controlplane.Message) bool { return m.Object != "TaskLog" || m.Operation != "get" })
			return len(messages) >= count, err
		})
	}
	asked(1)
	eventually(t, 30*time.Second, "the audit to end", func(context.Context) (bool, error) {
		return strings.HasPrefix(sql(t, taskLog()), "DONE"), nil
	})
	log := sql(t, taskLog())
	t.Log(log)
	require.Regexp(t, fmt.Sprintf(`^DONE\t0\t%s\t%s\tInstance usage audit ran for host %s, \d+ instances in`,
		begin.Format(time.DateTime), end.Format(time.DateTime), shared.Host), log)
	restartWith(t, shared, shared.AgentOptions)
	asked(2)
	require.NoError(t, shared.Plane.TellUsage(within(t, time.Minute), shared.Host, period))

	for _, id := range []string{here.ID, gone.ID} {
		eventually(t, 30*time.Second, "nova's own notifications", func(context.Context) (bool, error) {
			return min(len(toldUsage(t, trace, "compute.instance.exists", id)), len(toldUsage(t, trace, "instance.exists", id))) >= 2, nil
		})
		legacy, versioned := toldUsage(t, trace, "compute.instance.exists", id), toldUsage(t, trace, "instance.exists", id)
		require.Len(t, legacy, 2, "one of the agent and one of nova's")
		require.Len(t, versioned, 2)
		require.Equal(t, legacy[1], legacy[0])
		require.Equal(t, versioned[1], versioned[0])
		require.Equal(t, begin.Format(time.DateTime), legacy[0]["audit_period_beginning"])
		require.Equal(t, end.Format(time.DateTime), legacy[0]["audit_period_ending"])
		require.Equal(t, id == gone.ID, legacy[0]["deleted_at"] != "")
	}
	require.Empty(t, toldUsage(t, trace, "compute.instance.exists", young.ID), "it was launched after the period")
	require.Equal(t, log, sql(t, taskLog()))
}

// taskLog asks for what the task log has of this host.
func taskLog() string {
	return "SELECT state, errors, period_beginning, period_ending, message FROM nova.task_log " +
		"WHERE task_name = 'instance_usage_audit' AND host = '" + shared.Host + "'"
}

// toldUsage are the payloads of a server's notifications of an event by this host, without what is of the request.
func toldUsage(t *testing.T, trace *controlplane.Trace, event, server string) []map[string]any {
	t.Helper()
	messages, err := trace.Seen()
	require.NoError(t, err)
	var all []map[string]any
	for _, m := range messages {
		if m.Event != event || !strings.HasSuffix(m.Publisher, shared.Host) || !strings.Contains(string(m.Payload), server) {
			continue
		}
		var payload map[string]any
		require.NoError(t, json.Unmarshal(m.Payload, &payload))
		if data, ok := payload["nova_object.data"].(map[string]any); ok {
			delete(data, "request_id")
		}
		all = append(all, payload)
	}
	return all
}

// sql asks the control plane's database. It is for clean-ups, too.
func sql(t *testing.T, statement string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slower*30*time.Second)
	defer cancel()
	out, err := shared.Plane.SQL(ctx, statement)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}
