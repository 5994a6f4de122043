package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// importArchive is the smallest root file system, and size bytes more.
func importArchive(t *testing.T, size int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive.tar")
	f, err := os.Create(name)
	require.NoError(t, err)
	w := tar.NewWriter(f)
	large := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(large)
	for _, h := range []*tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "sbin/init", Mode: 0o755}, {Name: "large", Mode: 0o644, Size: int64(size)},
	} {
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write(large[:h.Size])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
	return name
}

// TestImageImportProgress: an import shows on a terminal how far it is, and nothing where programs
// read its result or nobody looks. Not parallel: standard error is the process's.
func TestImageImportProgress(t *testing.T) {
	base := t.TempDir()
	file := importArchive(t, 3<<20)
	level := logrus.StandardLogger().GetLevel() // which the command changes
	t.Cleanup(func() { logrus.StandardLogger().SetLevel(level) })
	credentials := "auth_type = password\nauth_url = http://127.0.0.1:1/v3\nusername = nova\npassword = x\nproject_name = service\nuser_domain_name = Default\nproject_domain_name = Default\n"
	config := filepath.Join(base, "agent.conf")
	require.NoError(t, os.WriteFile(config, []byte("[DEFAULT]\ntransport_url = rabbit://127.0.0.1:1/\nstate_path = "+base+
		"\n[lxc]\nimage_dir = "+filepath.Join(base, "images")+"\n[placement]\n"+credentials+"[neutron]\n"+credentials), 0o600))

	for _, c := range []struct {
		name, format string
		terminal     bool
		shows        bool
	}{
		{"people", "table", true, true},
		{"programs", "json", true, false},
		{"others", "yaml", true, false},
		{"pipe", "table", false, false},
	} {
		behind, stderr, err := os.Pipe()
		require.NoError(t, err)
		if c.terminal {
			require.NoError(t, behind.Close())
			require.NoError(t, stderr.Close())
			behind, stderr, err = openTerminal()
			require.NoError(t, err)
			require.NoError(t, unix.IoctlSetWinsize(int(behind.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}))
		}
		shown := make(chan []byte)
		go func() {
			all, _ := io.ReadAll(behind) // ends with EIO when the terminal's other end is closed
			shown <- all
		}()
		stdout, err := withStderr(stderr, "import", "--name", c.name, "-f", c.format, file, "--config-file", config)
		require.NoError(t, stderr.Close())
		text := string(<-shown)
		require.NoError(t, behind.Close())
		require.NoError(t, err, c.name)

		if !c.shows {
			require.Empty(t, text, c.name)
		} else {
			require.Contains(t, text, "local-"+c.name+" ")
			require.Contains(t, text, "3.0 MiB / 3.0 MiB", "the last state is the whole")
			require.Regexp(t, `\[=+>?\]`, text, "the bar itself")
		}
		if c.format == "table" {
			require.Contains(t, stdout, "imported local-"+c.name)
		}
		if c.format == "json" {
			var result map[string]any
			require.NoError(t, json.Unmarshal([]byte(stdout), &result), stdout)
		}
	}
}

// withStderr runs a command on images whose standard error is a file.
func withStderr(stderr *os.File, args ...string) (stdout string, err error) {
	before := os.Stderr
	os.Stderr = stderr
	defer func() { os.Stderr = before }()
	cmd := newImageCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(stderr)
	cmd.SilenceUsage = true
	cmd.SetArgs(args)
	err = cmd.Execute()
	return out.String(), err
}
