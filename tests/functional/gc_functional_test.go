//go:build functional

package functional

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// leftover is an entry of "gc -f json".
type leftover struct {
	Instance, Why, Error string
	Has                  []string
	Removable, Removed   bool
}

// collectGarbage tells of one server.
func collectGarbage(t *testing.T, server string, args ...string) []leftover {
	t.Helper()
	cmd := shared.Agent.Command(within(t, time.Minute), append([]string{"gc", "-f", "json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), stderr.String())
	var found []leftover
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &found))
	return slices.DeleteFunc(found, func(l leftover) bool { return l.Instance != server })
}

// TestGC: a server whose row is marked as deleted behind the agent's back is told, and goes when that is asked for; one that runs as it
// should is neither.
func TestGC(t *testing.T) {
	before := snapshot(t)
	running, lost := boot(t, cloud.NewServer{}), boot(t, cloud.NewServer{})
	where := " WHERE uuid = '" + lost.ID + "'"
	sql(t, "UPDATE nova.instances SET deleted = id, deleted_at = '2020-01-01 00:00:00'"+where)
	t.Cleanup(func() { sql(t, "UPDATE nova.instances SET deleted = 0, deleted_at = NULL"+where) }) // for the API to delete it

	found := collectGarbage(t, lost.ID, "--dry-run")
	require.Len(t, found, 1)
	require.Equal(t, leftover{Instance: lost.ID, Why: "deleted", Has: found[0].Has, Removable: true}, found[0])
	for _, what := range []string{"record", "container " + lost.InstanceName, "root disk", "id range", "use of an image"} {
		require.Contains(t, found[0].Has, what)
	}
	require.Equal(t, "0", inside(t, lost.ID, "id", "-u"), "it runs on")

	require.Empty(t, collectGarbage(t, running.ID, "--dry-run"))
	found = collectGarbage(t, lost.ID)
	require.Equal(t, []leftover{{Instance: lost.ID, Why: "deleted", Has: found[0].Has, Removable: true, Removed: true}}, found)
	_, err := shared.Agent.Exec(within(t, 30*time.Second), lost.ID, "true")
	require.ErrorContains(t, err, "no server")
	require.Empty(t, collectGarbage(t, lost.ID))
	require.Equal(t, "0", inside(t, running.ID, "id", "-u"))
	remove(t, running.ID)
	asBefore(t, before)

	require.NoError(t, shared.Agent.Signal(within(t, time.Minute), syscall.SIGTERM))
	t.Cleanup(func() { require.NoError(t, shared.StartAgent(context.Background())) })
	out, err := shared.Agent.Command(within(t, time.Minute), "gc").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "only the agent can ask nova")
}
