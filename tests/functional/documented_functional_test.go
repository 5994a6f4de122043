//go:build functional

package functional

import (
	"context"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// document is a Markdown file whose commands are run as they stand.
type document struct {
	dir      string              // where they are run, and where the openstack client finds the same files
	sections map[string][]string // blocks of commands, by the heading above
}

// command is what a block that is to be run has, and an example of output has not.
var command = regexp.MustCompile(`(?m)^(\w+=\$\()?(openstack|openssl|debootstrap|tar|mksquashfs|qemu-img) `)

// readDocument finds the blocks of commands: lines with an indent of four.
func readDocument(t *testing.T, file string) *document {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	dir := filepath.Join(shared.Plane.Root, "srv", "documented-"+shared.Host)
	require.NoError(t, os.RemoveAll(dir)) // of a run that was killed
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, shared.Plane.OpenStackProgram(filepath.Join(dir, "bin", "openstack")))

	d := &document{dir, map[string][]string{}}
	heading, block := "", ""
	end := func() {
		if command.MatchString(block) {
			d.sections[heading] = append(d.sections[heading], block)
		}
		block = ""
	}
	for line := range strings.Lines(string(text)) {
		switch code, indented := strings.CutPrefix(line, "    "); {
		case indented:
			block += code
		case strings.TrimSpace(line) == "" && block != "":
			block += "\n"
		default:
			end()
			if strings.HasPrefix(line, "#") {
				heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
			}
		}
	}
	end()
	return d
}

// commands are those of a section.
func (d *document) commands(t *testing.T, heading string) string {
	t.Helper()
	require.NotEmpty(t, d.sections[heading], "the document has no commands under %q", heading)
	return strings.Join(d.sections[heading], "\n")
}

// run runs commands of the document. The only thing that is added is the host: the control plane may have others.
func (d *document) run(t *testing.T, commands string) {
	t.Helper()
	shell(t, `cd `+d.dir+`
PATH=$PWD/bin:$PATH
openstack() {
  case " $* " in *" server create "*) set -- "$@" --availability-zone nova:`+shared.Host+` ;; esac
  command openstack "$@"
}
`+commands)
}

// web is the name of every server of the document.
const web = "web"

// server runs the commands of a section that make a server, and waits for it. Its images, by name, and the server go when the test ends.
func (d *document) server(t *testing.T, heading string, images ...string) cloud.Server {
	t.Helper()
	t.Cleanup(func() { deleteImages(t, images...) })
	t.Cleanup(func() { deleteNamed(t, web+"$") })
	began := time.Now()
	d.run(t, d.commands(t, heading))
	t.Logf("commands of %q: %.1f s", heading, time.Since(began).Seconds())
	var server cloud.Server
	eventually(t, time.Minute, "the server to be on this host", func(ctx context.Context) (bool, error) {
		servers, err := serversHere(ctx, web+"$")
		if len(servers) > 0 {
			server = servers[0]
		}
		return len(servers) > 0, err
	})
	server, err := shared.Admin.WaitStatus(within(t, 2*time.Minute), server.ID, "ACTIVE")
	require.NoError(t, err)
	answers(t, server)
	return server
}

// deleteImages removes images by their names; it is a clean-up.
func deleteImages(t *testing.T, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
	defer cancel()
	for _, name := range names {
		id, err := shared.Admin.ImageID(ctx, name)
		require.NoError(t, err)
		if id != "" { // else its upload is what has failed
			require.NoError(t, shared.Admin.DeleteImage(ctx, id))
		}
	}
}

// deleteSecrets removes what the key manager has by names; it is a clean-up.
func deleteSecrets(t *testing.T, user *cloud.Client, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
	defer cancel()
	for _, name := range names {
		var answer struct {
			Secrets []struct {
				Ref string `json:"secret_ref"`
			}
		}
		require.NoError(t, user.Do(ctx, http.MethodGet, cloud.KeyManager, "/v1/secrets?name="+name, nil, &answer))
		for _, secret := range answer.Secrets {
			require.NoError(t, user.DeleteSecret(ctx, path.Base(secret.Ref)))
		}
	}
}

// TestDocumentedUpload does what docs/images.md says, with its own commands and the openstack client: makes an archive, uploads each kind of
// image, and boots what it has uploaded. No commands are left out but one, which fetches a Debian: a tree is there instead, the small image
// with all that an archive can carry.
func TestDocumentedUpload(t *testing.T) {
	needQemu(t)
	d := readDocument(t, "../../docs/images.md")
	require.Equal(t, []string{
		"Cloud disk images", "Making an archive", "Signed images", "Split images", "Templates", "What an image requires", "What to upload",
	}, slices.Sorted(maps.Keys(d.sections)), "sections with commands, each of which has its part below")
	tree := richTree(t)
	shell(t, `cd `+d.dir+`
mkdir -p `+tree+`/etc/network/interfaces.d; ln -s `+tree+` tree
mkdir templates; printf '{{ config_get("user.colour", "none") }}' >templates/colour.tpl
cat >metadata.yaml <<EOF
architecture: x86_64
creation_date: 1700000000
templates:
  /etc/colour: {when: [create], template: colour.tpl}
EOF
tar -cJf meta.tar.xz metadata.yaml templates
mksquashfs `+tree+` rootfs.squashfs -quiet -no-progress`)
	fetch, pack, _ := strings.Cut(d.commands(t, "Making an archive"), "\n")
	require.Regexp(t, "^debootstrap .* tree$", fetch)
	d.run(t, pack)

	t.Run("archive", func(t *testing.T) {
		server := d.server(t, "What to upload", "debian-12")
		for _, k := range slices.Concat(keeps, keepsACLs) {
			require.Equal(t, k.want, inside(t, server.ID, "/bin/sh", "-c", k.command), k.command)
		}
		require.Equal(t, "auto eth0\niface eth0 inet dhcp", inside(t, server.ID, "cat", "/etc/network/interfaces.d/eth0"))
		require.Equal(t, web, inside(t, server.ID, "hostname"), "that of the tree would go before it")
	})
	t.Run("requirements", func(t *testing.T) {
		const image, nested = "kubernetes-node", "m1.nested"
		file, err := os.Open(filepath.Join(d.dir, "root.tar.xz"))
		require.NoError(t, err)
		defer file.Close()
		ctx := within(t, time.Minute)
		id, err := shared.Admin.UploadImage(ctx, image, "raw", nil, file)
		t.Cleanup(func() { deleteImages(t, image) })
		require.NoError(t, err)
		flavor, err := shared.Admin.CreateFlavor(ctx, cloud.NewFlavor{Name: nested, RAM: 64, VCPUs: 1, Disk: 1}, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, shared.Admin.DeleteFlavor(context.Background(), flavor)) })
		d.run(t, d.commands(t, "What an image requires"))
		server := boot(t, cloud.NewServer{Image: id, Flavor: flavor})
		require.Equal(t, "proc\nsys", inside(t, server.ID, "ls", "/dev/.lxc"), "the flavor allows nesting")
		refused := create(t, cloud.NewServer{Image: id})
		require.Contains(t, errored(t, refused).Fault.Message, "it requires nesting (requirements.nesting)")
	})
	t.Run("split", func(t *testing.T) {
		server := d.server(t, "Split images", "debian-12", "debian-12-metadata")
		require.Equal(t, "none", inside(t, server.ID, "cat", "/etc/colour"))
		remove(t, server.ID)
		server = d.server(t, "Templates")
		require.Equal(t, "blue", inside(t, server.ID, "cat", "/etc/colour"))
	})
	t.Run("disk", func(t *testing.T) {
		disk, err := shared.Plane.BusyboxDisk(within(t, time.Minute), t.TempDir())
		require.NoError(t, err)
		shell(t, "qemu-img convert -q -c -O qcow2 "+disk+" "+filepath.Join(d.dir, "debian-12-generic-amd64.qcow2"))
		server := d.server(t, "Cloud disk images", "debian-12")
		require.Contains(t, httpGet(t, server), "busybox ok")
	})
	t.Run("signed", func(t *testing.T) {
		if !shared.Plane.Release.KeyManager {
			t.Skip("needs a key manager, which the harness knows of Zed alone")
		}
		admin := withKeyManager(t)
		t.Cleanup(func() { deleteSecrets(t, admin, "image-ca", "image-signer") })
		server := d.server(t, "Signed images", "signed")
		var shown struct {
			Server struct {
				Trusted []string `json:"trusted_image_certificates"`
			}
		}
		require.NoError(t, admin.Do(within(t, time.Minute), http.MethodGet, cloud.Compute, "/servers/"+server.ID, nil, &shown))
		require.Len(t, shown.Server.Trusted, 1, "the server's image had to be signed")
	})
}
