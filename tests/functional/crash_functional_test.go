//go:build functional

package functional

import (
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
