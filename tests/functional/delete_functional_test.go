//go:build functional

package functional

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestDeleteInAnyState(t *testing.T) {
	running := func(t *testing.T) string { t.Helper(); return boot(t, cloud.NewServer{}).ID }
	post := func(t *testing.T, id, action string, args any) {
		t.Helper()
		require.NoError(t, shared.Admin.Action(within(t, time.Minute), id, action, args, nil))
	}
	for name, prepare := range map[string]func(t *testing.T) string{
		"just asked for": func(t *testing.T) string { t.Helper(); return create(t, cloud.NewServer{}) },
		"building": func(t *testing.T) string {
			t.Helper()
			id := create(t, cloud.NewServer{})
			time.Sleep(400 * time.Millisecond) // into the build
			return id
		},
		"active": running,
		"stopped": func(t *testing.T) string {
			t.Helper()
			id := running(t)
			act(t, id, "os-stop", nil, "SHUTOFF")
			return id
		},
		"stopping": func(t *testing.T) string {
			t.Helper()
			id := running(t)
			post(t, id, "os-stop", nil)
			return id
		},
		"rebooting": func(t *testing.T) string {
			t.Helper()
			id := running(t)
			post(t, id, "reboot", map[string]string{"type": "SOFT"})
			return id
		},
		"error": func(t *testing.T) string {
			t.Helper()
			id := running(t)
			post(t, id, "os-resetState", map[string]string{"state": "error"})
			return id
		},
		"off by itself": func(t *testing.T) string {
			t.Helper()
			id := running(t)
			shutDown(t, id, "poweroff", "-f")
			return id
		},
		"while the agent is away": func(t *testing.T) string {
			t.Helper()
			id := running(t)
			killAgent(t)
			require.NoError(t, shared.Admin.DeleteServer(within(t, time.Minute), id))
			startAgent(t)
			return id
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := snapshot(t)
			id := prepare(t)
			remove(t, id)
			noAllocations(t, id)
			nothingLeft(t, before)
		})
	}
}
