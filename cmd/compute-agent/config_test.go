package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// runConfig runs "compute-agent config" with the arguments and returns what it printed.
func runConfig(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newConfigCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors = true
	err := cmd.Execute()
	return out.String(), err
}

func TestConfigCheck(t *testing.T) {
	t.Parallel()
	real := "../../config/testdata/nova.conf"
	dir := t.TempDir()

	out, err := runConfig(t, "check", "--config-file", real, "--config-dir", dir)
	require.NoError(t, err)
	require.Contains(t, out, "127.0.0.1:5672, virtual host /, exchange nova")
	require.NotContains(t, out, "secret")

	out, err = runConfig(t, "check", "--config-file", real, "--config-dir", dir, "-f", "json")
	require.NoError(t, err)
	var result checkResult
	require.NoError(t, json.Unmarshal([]byte(out), &result))
	require.Equal(t, "vm", result.Summary.Host)
	require.Equal(t, []string{"127.0.0.1:5672"}, result.Summary.Transport.Hosts)
	require.NotContains(t, out, "secret")

	pool := filepath.Join(dir, "pool.conf")
	require.NoError(t, os.WriteFile(pool, []byte("[lxc]\nstorage_backend = btrfs\ninstances_dir = /proc/nowhere\n"), 0o600))
	out, err = runConfig(t, "check", "--config-file", real, "--config-dir", dir)
	require.NoError(t, err)
	require.Contains(t, out, "[lxc] storage_backend: warning: instances_dir /proc/nowhere is not on a btrfs file system (mount one there, or choose another back end)")
	require.NoError(t, os.WriteFile(pool, []byte("[lxc]\nroot_disk_quota = project\ninstances_dir = /proc/nowhere\n"), 0o600))
	out, err = runConfig(t, "check", "--config-file", real, "--config-dir", dir)
	require.NoError(t, err)
	require.Regexp(t, `\[lxc\] root_disk_quota: warning: instances_dir /proc/nowhere: .*the file system of /proc is not mounted with prjquota: .* \(mount it with prjquota`, out)
	require.NoError(t, os.Remove(pool))

	bad := filepath.Join(dir, "bad.conf")
	require.NoError(t, os.WriteFile(bad, []byte("[DEFAULT]\nreport_interval = ten\n[lxc]\nstorage_backends = dir\n"), 0o600))
	out, err = runConfig(t, "check", "--config-file", real, "--config-dir", dir)
	require.ErrorIs(t, err, errFaults)
	require.Equal(t, bad+`:2: [DEFAULT] report_interval: "ten" is not a whole number (allowed: seconds, a whole number, at least 1)
`+bad+`:4: [lxc] storage_backends: warning: unknown option, ignored (did you mean storage_backend?)
`, out)

	out, err = runConfig(t, "check", "--config-file", real, "--config-dir", dir, "-f", "json")
	require.ErrorIs(t, err, errFaults)
	result = checkResult{}
	require.NoError(t, json.Unmarshal([]byte(out), &result))
	require.Nil(t, result.Summary)
	require.Len(t, result.Findings, 2)

	_, err = runConfig(t, "check", "-f", "xml")
	require.ErrorContains(t, err, `unknown format "xml"`)
}

func TestConfigSample(t *testing.T) {
	t.Parallel()
	for file, args := range map[string][]string{
		"../../etc/compute-agent.conf.sample": {"sample"},
		"../../docs/options.md":               {"sample", "--markdown"},
	} {
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		out, err := runConfig(t, args...)
		require.NoError(t, err)
		require.Equal(t, string(want), out)
	}
}

func TestConfigHelpHasExamples(t *testing.T) {
	t.Parallel()
	out, err := runConfig(t, "check", "--help")
	require.NoError(t, err)
	require.Contains(t, out, "Examples:")
	require.Contains(t, out, "--config-file file")
}
