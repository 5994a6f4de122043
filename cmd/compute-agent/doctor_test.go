package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func runDoctor(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newDoctorCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.conf")
	require.NoError(t, os.WriteFile(file, []byte(`[DEFAULT]
transport_url = rabbit://nova:secret@127.0.0.1:5672/
state_path = `+dir+`
[lxc]
id_range = 1000000:65536000
lxcfs = on
storage_backend = btrfs
instances_dir = /proc/nowhere
colour = green
[os_vif_ovs]
ovsdb_connection = unix:`+dir+`/nobody.sock
`), 0o600))
	out, err := runDoctor(t, "--config-file", "../../config/testdata/nova.conf", "--config-file", file, "-f", "json")
	require.ErrorIs(t, err, errUnfit)
	var found []examination
	require.NoError(t, json.Unmarshal([]byte(out), &found))
	results := map[string]examination{}
	for _, e := range found {
		results[e.Check] = e
	}
	require.Equal(t, resultWarning, results["configuration"].Result)
	require.Contains(t, results["configuration"].Problems[0].What, "[lxc] colour: warning: unknown option")
	require.Equal(t, resultFailed, results["storage (btrfs)"].Result)
	require.Contains(t, results["storage (btrfs)"].Problems[0].What, "is not on a btrfs file system")
	require.Equal(t, resultWarning, results["Open vSwitch"].Result)
	require.Contains(t, results["Open vSwitch"].Problems[0].What, "nobody.sock")
	require.Contains(t, results, "control groups")
	require.NotContains(t, out, "secret")

	out, err = runDoctor(t, "--config-file", filepath.Join(dir, "none.conf"))
	require.ErrorIs(t, err, errUnfit)
	require.Regexp(t, `(?m)^failed   configuration\n .*none.conf`, out)
	_, err = runDoctor(t, "-f", "xml")
	require.ErrorContains(t, err, "use text or json")
}

func TestExamineSwitch(t *testing.T) {
	t.Parallel()
	socket := socketPath(t, "db.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer listener.Close()
	require.Equal(t, resultOK, examineSwitch(t.Context(), []string{"unix:/nowhere", "unix:" + socket}).Result)
}
