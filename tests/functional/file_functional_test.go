//go:build functional

package functional

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// fileCommand runs "compute-agent file" and returns what it printed, or its complaint as the error.
func fileCommand(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := shared.Agent.Command(within(t, time.Minute), append([]string{"file"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String() + stderr.String(), nil
}

// killWhilePushing kills "compute-agent file push" when it has made the file that the guest is to have.
func killWhilePushing(t *testing.T, target string) {
	t.Helper()
	cmd := shared.Agent.Command(within(t, time.Minute), "file", "push", "-", target)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = stdin.Write(make([]byte, 1<<16))
	require.NoError(t, err)
	eventually(t, 20*time.Second, "the file to be written", func(context.Context) (bool, error) {
		open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		for _, fd := range open {
			name, linkErr := os.Readlink(fd)
			if info, statErr := os.Stat(fd); linkErr == nil && statErr == nil && strings.HasSuffix(name, " (deleted)") && info.Size() > 0 {
				return true, nil
			}
		}
		return false, err
	})
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
}

// TestFile: files go into a guest and come out of it as the guest's own, on its root disk and on file systems that it has mounted, and
// nothing that the guest does with names leads out of it.
func TestFile(t *testing.T) {
	server := boot(t, cloud.NewServer{Flavor: shared.Small})
	guest := func(command string) string { return inside(t, server.ID, "/bin/sh", "-c", command) }
	file := func(args ...string) {
		t.Helper()
		out, err := fileCommand(t, "from standard input", args...)
		require.NoError(t, err)
		require.Empty(t, out)
	}
	refused := func(why string, args ...string) {
		t.Helper()
		_, err := fileCommand(t, "x", args...)
		require.ErrorContains(t, err, why)
	}
	dir := t.TempDir()
	local := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.MkdirAll(local("site/sub"), 0o755))
	require.NoError(t, os.WriteFile(local("site/sub/index"), []byte("hello"), 0o750))
	require.NoError(t, os.Symlink("sub/index", local("site/link")))
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	require.NoError(t, os.WriteFile(local("large"), large, 0o600))

	// Owners are the guest's, and those of a file that is replaced stay.
	file("push", "-", server.ID+"/etc/new")
	require.Equal(t, "0:0 644 from standard input", guest("stat -c '%u:%g %a' /etc/new | tr '\\n' ' '; cat /etc/new"))
	guest("chown 5:6 /etc/new; chmod 604 /etc/new; ln -s /etc/new /link")
	file("push", local("large"), server.ID+"/link")
	require.Equal(t, fmt.Sprintf("5:6 604 %d", len(large)), guest("stat -c '%u:%g %a %s' /etc/new"))
	file("push", "--uid", "1000", "--gid", "100", "--mode", "4750", "-p", local("site/sub/index"), server.ID+"/srv/a/b/")
	require.Equal(t, "1000:100 4750\n0:0 755", guest("stat -c '%u:%g %a' /srv/a/b/index /srv/a/b"))
	file("push", "-r", "--uid", "1000", local("site"), server.ID+"/srv")
	require.Equal(t, "1000:0 755\n1000:0 750\nsub/index\nhello", guest("stat -c '%u:%g %a' /srv/site/sub /srv/site/sub/index; readlink /srv/site/link; cat /srv/site/link"))

	// And back; /tmp is a file system that the guest has mounted.
	guest("mount -t tmpfs none /tmp; cp -a /srv/site /tmp/; mkfifo /tmp/site/pipe")
	file("pull", server.ID+"/etc/new", local("back"))
	back, err := os.ReadFile(local("back"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(large, back))
	out, err := fileCommand(t, "", "pull", "-r", server.ID+"/tmp/site", local("tree"))
	require.NoError(t, err)
	require.Equal(t, "skipped \"/tmp/site/pipe\": it is not a regular file\n", out)
	require.Equal(t, "hello", shell(t, "cd "+local("tree")+"; cat link"))
	out, err = fileCommand(t, "", "pull", server.ID+"/srv/a/b/index", "-")
	require.NoError(t, err)
	require.Equal(t, "hello", out)
	file("push", "-", server.ID+"/tmp/typed")
	require.Equal(t, "from standard input", guest("cat /tmp/typed"))

	// What leads elsewhere.
	require.NoError(t, os.WriteFile(local("secret"), []byte("the host's"), 0o644))
	guest("ln -s ../../../../../.." + local("secret") + " /out; ln -s /proc/1/root" + local("secret") + " /magic; ln -s /proc/sys/kernel/hostname /sys-file")
	refused("no such file", "pull", server.ID+"/out", "-")
	refused("too many levels of symbolic links", "pull", server.ID+"/magic", "-")
	refused("not one for files", "pull", server.ID+"/proc/version", "-")
	refused("not one for files", "push", "-", server.ID+"/sys-file")
	refused("not a regular file", "push", "-", server.ID+"/dev/null")
	refused("has no id 65536", "push", "--uid", "65536", "-", server.ID+"/etc/new")
	refused("is a directory", "pull", server.ID+"/etc", local("etc"))
	require.Equal(t, "the host's", shell(t, "cat "+local("secret")))
	killWhilePushing(t, server.ID+"/etc/new")
	killWhilePushing(t, server.ID+"/etc/never")
	require.Equal(t, strconv.Itoa(len(large)), guest("stat -c %s /etc/new"))
	require.Empty(t, guest("find / -xdev \\( -name '.*' -o -name never \\) -type f"), "nothing is left of copies that failed")

	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	refused("is shut down", "pull", server.ID+"/etc/new", "-")
}
