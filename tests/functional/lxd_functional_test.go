//go:build functional

package functional

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/lxd"
)

// TestLXD: images go from servers and the node's store to LXD, and from LXD to Glance.
func TestLXD(t *testing.T) { exchangeImages(t, lxd.LXD) }

// TestIncus is the same with Incus. It is not in Debian 12, and this not in "make functional": see "make functional-incus".
func TestIncus(t *testing.T) { exchangeImages(t, lxd.Incus) }

// marked is a shell command that marks a guest, and marks are what a guest made of its image has.
const marked = "echo mine >/mark; chown 1000:100 /mark; chmod 4750 /mark; ln /mark /same; ln -s /nowhere /link"

var marks = []struct{ command, want string }{
	{"cat /mark", "mine"},
	{"stat -c '%u:%g %a %h' /mark", "1000:100 4750 2"},
	{"readlink /link", "/nowhere"},
}

// guestOf is a guest of LXD's.
type guestOf struct {
	t      *testing.T
	daemon *lxd.Daemon
	name   string
}

func launch(t *testing.T, daemon *lxd.Daemon, alias, name string) guestOf {
	t.Helper()
	name, err := daemon.Launch(within(t, time.Minute), alias, name)
	require.NoError(t, err)
	return guestOf{t, daemon, name}
}

func (g guestOf) shell(command string) string {
	g.t.Helper()
	out, err := g.daemon.Run(within(g.t, 30*time.Second), "exec", g.name, "--", "/bin/sh", "-c", command)
	require.NoError(g.t, err)
	return out
}

func exchangeImages(t *testing.T, kind lxd.Kind) {
	daemon, err := lxd.Start(within(t, 10*time.Minute), shared.Plane, kind)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, daemon.Stop(context.Background())) })
	client := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := daemon.Run(within(t, 2*time.Minute), append([]string{"--quiet"}, args...)...)
		require.NoError(t, err)
		return out
	}

	t.Run("of a server", func(t *testing.T) {
		server := boot(t, cloud.NewServer{Image: shared.Debian, Flavor: shared.Small})
		inside(t, server.ID, "/bin/sh", "-c", marked)
		release := inside(t, server.ID, "cat", "/etc/os-release")
		id := createImage(t, server.ID, "for-"+kind.Name)
		size := imageActive(t, id).Size
		remove(t, server.ID)
		download(t, id, daemon.File("server"))

		client(t, "image", "import", "server", "--alias", "server")
		image, err := daemon.Image(within(t, time.Minute), "server")
		require.NoError(t, err)
		require.Equal(t, []any{"x86_64", "container", size}, []any{image.Architecture, image.Type, image.Size})
		require.Equal(t, server.ID, image.Properties["instance_uuid"])
		require.Contains(t, client(t, "image", "info", "server"), "Architecture: x86_64")
		guest := launch(t, daemon, "server", "server")
		require.Equal(t, release, guest.shell("cat /etc/os-release"))
		require.Contains(t, release, "VERSION_ID=\"12\"")
		require.Equal(t, "systemd", guest.shell("cat /proc/1/comm"))
		for _, m := range marks {
			require.Equal(t, m.want, guest.shell(m.command), m.command)
		}
	})

	t.Run("of the node's store", func(t *testing.T) {
		_, err := imageCommand(t, "import", "--glance", shared.Busybox)
		require.NoError(t, err)
		_, err = imageCommand(t, "export", shared.Busybox, daemon.File("store.tar.zst"))
		require.NoError(t, err)
		client(t, "image", "import", "store.tar.zst", "--alias", "store")
		guest := launch(t, daemon, "store", "store")
		guest.shell(marked)
		client(t, "publish", "--force", guest.name, "--alias", "published", "os=busybox", "release=12")
	})
	if t.Failed() {
		return
	}

	for _, form := range []string{"unified", "split"} {
		t.Run(form, func(t *testing.T) {
			file, properties := daemon.File("unified.tar.gz"), map[string]any{}
			client(t, "image", "export", "published", "unified")
			if form == "split" {
				shell(t, `cd `+filepath.Dir(file)+`; mkdir tree; tar -C tree --numeric-owner -xpzf unified.tar.gz
tar -C tree -cJf meta.tar.xz --exclude=./rootfs .; mksquashfs tree/rootfs root.squashfs -quiet -no-progress`)
				client(t, "image", "import", "meta.tar.xz", "root.squashfs", "--alias", "split")
				client(t, "image", "export", "split", "split")
				properties["lxc_metadata_image"] = upload(t, daemon.File("split"), "raw", nil)
				file = daemon.File("split.root")
			}
			id := upload(t, file, "raw", properties)
			server := boot(t, cloud.NewServer{Image: id})
			answers(t, server)
			for _, m := range marks {
				require.Equal(t, m.want, inside(t, server.ID, "/bin/sh", "-c", m.command), m.command)
			}
			out, err := imageCommand(t, "show", id, "-f", "json")
			require.NoError(t, err)
			var image struct {
				Architecture string
				Metadata     struct{ Properties map[string]string }
			}
			require.NoError(t, json.Unmarshal([]byte(out), &image))
			require.Equal(t, "x86_64", image.Architecture)
			require.Equal(t, "busybox", image.Metadata.Properties["os"])
			remove(t, server.ID)
		})
	}
}

// download writes an image's data to a file.
func download(t *testing.T, id, file string) {
	t.Helper()
	f, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, shared.Admin.Do(within(t, 2*time.Minute), http.MethodGet, cloud.Image, "/v2/images/"+id+"/file", nil, f))
	require.NoError(t, f.Close())
}
