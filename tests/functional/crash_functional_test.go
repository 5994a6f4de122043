//go:build functional

package functional

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestGuestsOutliveTheAgent(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	first := booted(t, server.ID)

	killAgent(t)
	answers(t, server)
	startAgent(t)
	require.Equal(t, first, booted(t, server.ID), "the guest was not touched")
	for _, step := range []struct{ action, status string }{{"os-stop", "SHUTOFF"}, {"os-start", "ACTIVE"}} {
		act(t, server.ID, step.action, nil, step.status)
	}
	answers(t, server)
	first = booted(t, server.ID)

	require.NoError(t, shared.Agent.Signal(within(t, 30*time.Second), syscall.SIGTERM), "SIGTERM ends the agent with status 0")
	answers(t, server)
	startAgent(t)
	require.Equal(t, first, booted(t, server.ID), "the guest was not touched")
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	answers(t, server)
}

// TestKilledWhileBuilding kills the agent at several moments of a build. The server must come to an end, ACTIVE or ERROR, and
// deleting it must leave nothing.
func TestKilledWhileBuilding(t *testing.T) {
	for _, ms := range []int{300, 700, 1100, 1600, 2200} {
		after := time.Duration(ms) * time.Millisecond
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			before := snapshot(t)
			id := create(t, cloud.NewServer{})
			time.Sleep(after)
			killAgent(t)
			startAgent(t)
			server := statusIn(t, 90*time.Second, id, "ACTIVE", "ERROR")
			if server.Status == "ACTIVE" {
				answers(t, server)
			} else {
				errored(t, id)
			}
			remove(t, id)
			noAllocations(t, id)
			nothingLeft(t, before)
		})
	}
}

// TestKilledWhileAGuestHalts: the next start does what was asked for, and the event that the killed agent began has its result.
func TestKilledWhileAGuestHalts(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	for _, c := range []struct {
		action, name, task string
		args               any
		status             string
	}{
		{"reboot", "reboot", "reboot_started", map[string]string{"type": "SOFT"}, "ACTIVE"},
		{"os-stop", "stop", "powering-off", nil, "SHUTOFF"},
	} {
		time.Sleep(6 * time.Second) // the agent does not take a start of just before for the reboot's own
		first, pid := booted(t, server.ID), guestPID(t, server.ID)
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP), "an init that is stopped does not halt")
		require.NoError(t, shared.Admin.Action(within(t, time.Minute), server.ID, c.action, c.args, nil))
		eventually(t, 30*time.Second, "the agent to begin", func(ctx context.Context) (bool, error) {
			now, err := shared.Admin.Server(ctx, server.ID)
			open := sql(t, "SELECT COUNT(*) FROM nova.instance_actions_events e JOIN nova.instance_actions a ON a.id = e.action_id "+
				"WHERE a.instance_uuid = '"+server.ID+"' AND e.event = 'compute_"+c.name+"_instance' AND e.finish_time IS NULL")
			return now.TaskState == c.task && open == "1", err
		})
		killAgent(t)
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		startAgent(t)
		eventually(t, 90*time.Second, "the end of "+c.name, func(ctx context.Context) (bool, error) {
			now, err := shared.Admin.Server(ctx, server.ID)
			return now.Status == c.status && now.TaskState == "", err
		})
		requireAction(t, server.ID, c.name, "compute_"+c.name+"_instance")
		if c.status == "ACTIVE" {
			answers(t, server)
			require.NotEqual(t, first, booted(t, server.ID))
		}
	}
}

func TestGuestOffWhileAgentAway(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	answers(t, server)
	killAgent(t)
	shutDown(t, server.ID, "poweroff")
	time.Sleep(2 * time.Second) // for the guest to be off
	startAgent(t)
	statusIn(t, 60*time.Second, server.ID, "SHUTOFF")
	act(t, server.ID, "os-start", nil, "ACTIVE")
	answers(t, server)
}
