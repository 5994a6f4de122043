//go:build functional

package functional

import (
	"context"
	"encoding/base64"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// injecting has the agent write into root disks, with more options.
func injecting(t *testing.T, options string) {
	t.Helper()
	withOptions(t, shared, "[libvirt]\ninject_partition = -1\ninject_key = true\ninject_password = true\n"+options)
}

// TestInjection: a server whose image has no cloud-init (it is turned off by one of the files) has its owner's key, password, files and
// metadata all the same. Its own sshd and libc say whether they are good.
func TestInjection(t *testing.T) {
	injecting(t, "")
	ctx := within(t, time.Minute)
	name := "injection-" + shared.Host
	_ = shared.Admin.DeleteKeyPair(ctx, name) // of a run that was cut off
	private, err := shared.Admin.CreateKeyPair(ctx, name)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, shared.Admin.DeleteKeyPair(ctx, name))
	})
	files := []cloud.File{
		{Path: "/etc/cloud/cloud-init.disabled", Contents: []byte("\n")}, {Path: "/srv/key/id", Contents: []byte(private)}, {Path: "etc/motd", Contents: []byte("hello\n")},
	}
	server := boot(t, cloud.NewServer{
		Image: shared.Debian, Flavor: shared.Small, Networks: "none", KeyName: name, AdminPass: "fÜr root: $1",
		Metadata: map[string]string{"role": "web"}, Personality: files,
	})
	good := func(password string) {
		t.Helper()
		for file, want := range map[string]string{
			"/root/.ssh": "0 0 700", "/root/.ssh/authorized_keys": "0 0 600", "/srv/key": "0 0 744", "/srv/key/id": "0 0 644", "/meta.js": "0 0 644",
			"/etc/motd": "0 0 644", "/etc/shadow": "0 42 640",
		} {
			require.Equal(t, want, inside(t, server.ID, "stat", "-c", "%u %g %a", file), file)
		}
		require.JSONEq(t, `{"role": "web"}`, inside(t, server.ID, "cat", "/meta.js"))
		require.Equal(t, "hello", inside(t, server.ID, "cat", "/etc/motd"))
		check := `use strict; my @f = getpwnam("root"); exit(crypt($ARGV[0], $f[1]) eq $f[1] ? 0 : 1)`
		inside(t, server.ID, "perl", "-e", check, password)
		inside(t, server.ID, "pwck", "-r", "-q")
		inside(t, server.ID, "cp", "/srv/key/id", "/run/id")
		inside(t, server.ID, "chmod", "600", "/run/id")
		var out string
		eventually(t, time.Minute, "a login with the key", func(ctx context.Context) (bool, error) {
			var err error
			out, err = shared.Agent.Exec(ctx, server.ID, "ssh", "-i", "/run/id", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
				"root@127.0.0.1", "echo logged in as $(id -u)")
			return err == nil, nil
		})
		require.Contains(t, out, "logged in as 0")
	}
	good("fÜr root: $1")

	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	require.Equal(t, "1", inside(t, server.ID, "grep", "-c", "^ssh-", "/root/.ssh/authorized_keys"), "it is the same root disk")

	again := map[string]any{"imageRef": shared.Debian, "adminPass": "another", "personality": files}
	require.NoError(t, shared.Admin.DoAt(within(t, time.Minute), cloud.WithFiles, http.MethodPost, cloud.Compute, "/servers/"+server.ID+"/action", map[string]any{"rebuild": again}, nil))
	statusIn(t, time.Minute, server.ID, "ACTIVE")
	good("another")

	rescue(t, server.ID, map[string]any{"rescue_image_ref": shared.Busybox})
	require.Equal(t, "1", inside(t, server.ID, "grep", "-c", "^ssh-", "/root/.ssh/authorized_keys"), "the rescue system's")
	require.Equal(t, "hello", inside(t, server.ID, "cat", "/mnt/etc/motd"))
	inside(t, server.ID, "test", "!", "-e", "/etc/motd")
	act(t, server.ID, "unrescue", nil, "ACTIVE")
	logged, _, err := shared.Agent.Log(0)
	require.NoError(t, err)
	require.NotContains(t, logged, "fÜr root")
	require.NotContains(t, logged, base64.StdEncoding.EncodeToString([]byte(private))[:40])
}

// TestInjectionNowhere: a config drive takes the place of injection; a file that has no place in the image ends the build, with the reason; and
// a back end that copies images gets the files with the server's own ids, too.
func TestInjectionNowhere(t *testing.T) {
	injecting(t, "[lxc]\nstorage_backend = dir\n")
	before := snapshot(t)
	banner := cloud.File{Path: "/etc/banner/text", Contents: []byte("hello\n")}
	server := boot(t, cloud.NewServer{Networks: "none", Personality: []cloud.File{banner}})
	require.Equal(t, "hello", inside(t, server.ID, "cat", "/etc/banner/text"))
	require.Equal(t, "0 0 744", inside(t, server.ID, "stat", "-c", "%u %g %a", "/etc/banner"))
	remove(t, server.ID)

	server = boot(t, cloud.NewServer{Networks: "none", ConfigDrive: true, Personality: []cloud.File{banner}})
	inside(t, server.ID, "test", "!", "-e", "/etc/banner")
	inside(t, server.ID, "test", "-e", "/config-drive/openstack/content/0000")
	remove(t, server.ID)

	id := create(t, cloud.NewServer{Networks: "none", Personality: []cloud.File{{Path: "/bin/busybox/text", Contents: []byte("hello\n")}}})
	require.Contains(t, errored(t, id).Fault.Message, `write the file "/bin/busybox/text" into the root disk`)
	remove(t, id)
	asBefore(t, before)
}
