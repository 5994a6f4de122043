//go:build functional

package functional

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestShares: a server has the directories of its host that its flavor names, with its own ids, over reboots and a restart of the
// agent, and leaves no mount. A flavor with one that no host has ends in an error.
func TestShares(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "shares-") //nolint:usetesting // not every kernel maps the ids of a tmpfs
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	data, tools := filepath.Join(dir, "data"), filepath.Join(dir, "tools")
	for _, d := range []string{data, tools} {
		require.NoError(t, os.Mkdir(d, 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(tools, "file"), []byte("tool"), 0o600))
	require.NoError(t, os.Chown(filepath.Join(tools, "file"), 1000, 1000))
	withOptions(t, shared, "[lxc]\nshares = data:"+data+", tools:"+tools+":ro\n")

	server := boot(t, cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1}, map[string]string{
		"lxc:share:data": "/srv/data", "lxc:share:tools": "/opt/tools",
	})})
	require.Equal(t, "1000 tool", inside(t, server.ID, "sh", "-c", "echo $(stat -c %u /opt/tools/file) $(cat /opt/tools/file)"))
	inside(t, server.ID, "sh", "-c", "echo mine > /srv/data/mine && chown 7 /srv/data/mine")
	info, err := os.Stat(filepath.Join(data, "mine"))
	require.NoError(t, err)
	require.EqualValues(t, 7, info.Sys().(*syscall.Stat_t).Uid)
	for _, try := range []string{
		"echo x > /opt/tools/file", "mount -o remount,rw,bind /opt/tools && echo x > /opt/tools/file", "echo x > /opt/tools/new",
	} {
		out, _ := shared.Agent.Exec(within(t, time.Minute), server.ID, "sh", "-c", "("+try+") 2>/dev/null && echo done")
		require.NotContains(t, out, "done", try)
	}

	restartAgent(t, syscall.SIGTERM)
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	require.Equal(t, "mine", inside(t, server.ID, "cat", "/srv/data/mine"))
	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	noDisks(t, server.ID)
	act(t, server.ID, "os-start", nil, "ACTIVE")
	require.Equal(t, "7", inside(t, server.ID, "stat", "-c", "%u", "/srv/data/mine"))
	remove(t, server.ID)
	noDisks(t, server.ID)
	require.NoDirExists(t, filepath.Join(shared.Agent.StateDir(), "compute-agent", "shares", server.ID))
	content, err := os.ReadFile(filepath.Join(data, "mine"))
	require.NoError(t, err, "what is shared stays")
	require.Equal(t, "mine\n", string(content))
}

// TestShareThatNoHostHas: the build goes back to the scheduler, which has no other host.
func TestShareThatNoHostHas(t *testing.T) {
	id := create(t, cloud.NewServer{Flavor: flavor(t, cloud.NewFlavor{Disk: 1}, map[string]string{"lxc:share:none": "/srv"})})
	require.Contains(t, errored(t, id).Fault.Message, "none named none")
}
