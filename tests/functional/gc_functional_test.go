//go:build functional

package functional

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
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
	require.Len(t, found, 1)
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

// TestGCFindsLinksWithoutRecord: the agent's database is put back to what it was before a server came, which is deleted behind the agent's
// back. A start removes what the driver and the disks tell of; the links are known by the server's UUID alone.
func TestGCFindsLinksWithoutRecord(t *testing.T) {
	before := snapshot(t)
	t.Cleanup(func() { require.NoError(t, shared.StartAgent(context.Background())) }) // unless it runs
	database := filepath.Join(shared.Agent.StateDir(), "compute-agent", "agent.db")
	require.NoError(t, shared.Agent.Signal(within(t, time.Minute), syscall.SIGTERM))
	old, err := os.ReadFile(database)
	require.NoError(t, err)
	startAgent(t)
	running, lost := boot(t, cloud.NewServer{}), boot(t, cloud.NewServer{})
	ports, err := shared.Admin.Ports(within(t, time.Minute), "device_id="+lost.ID)
	require.NoError(t, err)
	require.Len(t, ports, 1)
	act(t, lost.ID, "os-stop", nil, "SHUTOFF")

	require.NoError(t, shared.Agent.Signal(within(t, time.Minute), syscall.SIGTERM))
	recent, err := os.ReadFile(database)
	require.NoError(t, err)
	where := " WHERE uuid = '" + lost.ID + "'"
	sql(t, "UPDATE nova.instances SET deleted = id, deleted_at = '2020-01-01 00:00:00'"+where)
	t.Cleanup(func() { sql(t, "UPDATE nova.instances SET deleted = 0, deleted_at = NULL"+where) }) // for the API to delete it
	require.NoError(t, os.WriteFile(database, old, 0o600))
	startAgent(t)
	var found []leftover
	eventually(t, time.Minute, "the start to remove the container", func(context.Context) (bool, error) {
		found = collectGarbage(t, lost.ID, "--dry-run")
		return len(found) == 1 && !slices.ContainsFunc(found[0].Has, func(what string) bool { return strings.HasPrefix(what, "container") }), nil
	})
	require.Equal(t, leftover{Instance: lost.ID, Why: "deleted", Has: found[0].Has, Removable: true}, found[0])
	t.Logf("left: %q", found[0].Has)
	require.Contains(t, found[0].Has, "device tap"+ports[0].ID[:11])
	if shared.Plane.Net == controlplane.OVS {
		require.True(t, slices.ContainsFunc(found[0].Has, func(what string) bool { return strings.HasPrefix(what, "Open vSwitch port ") }))
	}
	require.Empty(t, collectGarbage(t, running.ID, "--dry-run"), "nova has it here")

	found = collectGarbage(t, lost.ID)
	require.Len(t, found, 1)
	require.Equal(t, []leftover{{Instance: lost.ID, Why: "deleted", Has: found[0].Has, Removable: true, Removed: true}}, found)
	require.Empty(t, collectGarbage(t, lost.ID))
	answers(t, running)

	require.NoError(t, shared.Agent.Signal(within(t, time.Minute), syscall.SIGTERM))
	require.NoError(t, os.WriteFile(database, recent, 0o600)) // of the server that runs
	startAgent(t)
	remove(t, running.ID)
	asBefore(t, before)
}
