//go:build functional

package functional

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// shell runs a script that makes images.
func shell(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, 3*time.Minute), "/bin/bash", "-euc", script)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)
	return strings.TrimSpace(string(out))
}

// richTree is the small image with everything that an archive can carry, and with the programs that show it.
func richTree(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"getfacl", "setfacl", "getfattr", "setfattr", "getcap", "setcap", "mksquashfs", "zstd", "bzip2", "xz"} {
		if _, err := exec.LookPath(program); err != nil {
			need(program)
			t.Skip()
		}
	}
	tree := filepath.Join(t.TempDir(), "tree")
	shell(t, `mkdir -p `+tree+`; cd `+tree+`; tar --numeric-owner -xpf `+shared.Plane.BusyboxPath()+`
mkdir -p opt/acl lib64
for p in getfacl getfattr getcap; do
  cp "$(type -P $p)" opt/
  for l in $(ldd "$(type -P $p)" | grep -o '/[^ ]*'); do mkdir -p ".${l%/*}"; cp -L "$l" ".$l"; done
done
cd opt
echo owned >owned; chown 1000:100 owned; chmod 4750 owned
echo linked >one; ln one two; ln -s one three
cp ../bin/busybox capable; setcap cap_net_raw,cap_net_admin=ep capable
echo attr >attr; setfattr -n user.origin -v Glance attr
echo acl >listed; setfacl -m u:1000:rw,g:100:r listed; setfacl -d -m u:1001:rwx acl
truncate -s 64M sparse; printf end | dd of=sparse bs=1 seek=40000000 conv=notrunc status=none
mkfifo pipe; touch -d @1234567890 old; mkdir sticky; chmod 1777 sticky`)
	return tree
}

// keeps are commands in the guest and what they say if nothing of the tree was lost.
var keeps = []struct{ command, want string }{
	{"stat -c '%u:%g %a' /opt/owned", "1000:100 4750"},
	{"stat -c %h /opt/one; cat /opt/two; readlink /opt/three", "2\nlinked\none"},
	{"[ /opt/one -ef /opt/two ] && echo same", "same"},
	{"/opt/getcap /opt/capable", "/opt/capable cap_net_admin,cap_net_raw=ep"},
	{"/opt/getfattr --only-values -n user.origin /opt/attr", "Glance"},
	{"stat -c %s /opt/sparse; tail -c +40000001 /opt/sparse | head -c 3", "67108864\nend"},
	{"[ $(du -k /opt/sparse | cut -f1) -lt 1000 ] && echo holes", "holes"},
	{"stat -c '%F %a' /opt/pipe /opt/sticky", "fifo 644\ndirectory 1777"},
	{"stat -c %Y /opt/old", "1234567890"},
}

var keepsACLs = []struct{ command, want string }{
	{"/opt/getfacl -cn /opt/listed", "user::rw-\nuser:1000:rw-\ngroup::r--\ngroup:100:r--\nmask::rw-\nother::r--"},
	{"/opt/getfacl -cdn /opt/acl", "user::rwx\nuser:1001:rwx\ngroup::r-x\nmask::rwx\nother::r-x"},
}

// TestImageFormats: every form of an image, from its upload to what its guest sees.
func TestImageFormats(t *testing.T) {
	tree := richTree(t)
	dir := filepath.Dir(tree)
	tar := "tar -C " + tree + " --numeric-owner --xattrs --xattrs-include='*' --acls -S -c . "
	shell(t, `cd `+dir+`
`+tar+`>root.tar
gzip -1 <root.tar >root.tar.gz; bzip2 -1 <root.tar >root.tar.bz2; xz -0 -T2 <root.tar >root.tar.xz; zstd -q -1 <root.tar >root.tar.zst
mksquashfs tree root.squashfs -quiet -no-progress -comp zstd
mkdir -p lxd/templates
echo '{{ container.name }}' >lxd/templates/hostname.tpl
echo '{{ trigger }} {{ container.architecture }} {{ properties.word }} {{ config_get("user.colour", "none") }}' >lxd/templates/vars.tpl
echo '{{ path|shout }}' >lxd/templates/bad.tpl
cat >lxd/metadata.yaml <<EOF
architecture: x86_64
creation_date: 1700000000
properties: {os: busybox, release: formats}
templates:
  /etc/hostname: {when: [create, copy], template: hostname.tpl}
  /etc/template: {when: [create], template: vars.tpl, properties: {word: hello}, uid: 1000, gid: 100, mode: "0640"}
  /etc/copied: {when: [copy], template: vars.tpl, properties: {word: again}}
  /run-start: {when: [start], template: vars.tpl}
  /etc/hosts: {when: [create], template: bad.tpl}
EOF
tar -C lxd -cJf meta.tar.xz metadata.yaml templates
mv tree lxd/rootfs; tar -C lxd --numeric-owner --xattrs --xattrs-include='*' --acls -S -cf - metadata.yaml rootfs templates | zstd -q -1 >unified.tar.zst; mv lxd/rootfs tree`)

	for _, c := range []struct {
		file, format, metadata string
		acls, templates        bool
	}{
		{"root.tar", "raw", "", true, false},
		{"root.tar.gz", "raw", "", true, false},
		{"root.tar.bz2", "raw", "", true, false},
		{"root.tar.xz", "raw", "", true, false},
		{"root.tar.zst", "raw", "", true, false},
		{"root.squashfs", "raw", "", false, false}, // which has no access lists
		{"unified.tar.zst", "raw", "", true, true},
		{"root.squashfs", "raw", "meta.tar.xz", false, true},
		{"root.tar.gz", "raw", "meta.tar.xz", true, true},
	} {
		name := c.file
		if c.metadata != "" {
			name = "split-" + c.file
		}
		t.Run(name, func(t *testing.T) {
			properties := map[string]any{"hw_architecture": "x86_64"}
			if c.metadata != "" {
				properties["lxc_metadata_image"] = upload(t, filepath.Join(dir, c.metadata), "raw", nil)
			}
			image := upload(t, filepath.Join(dir, c.file), c.format, properties)
			server := boot(t, cloud.NewServer{Name: "formats-" + strings.ReplaceAll(name, ".", "-"), Image: image})
			answers(t, server)
			checks := keeps
			if c.acls {
				checks = append(slices.Clip(checks), keepsACLs...)
			}
			for _, k := range checks {
				require.Equal(t, k.want, inside(t, server.ID, "/bin/sh", "-c", k.command), k.command)
			}
			if c.templates {
				host := "formats-" + strings.ReplaceAll(name, ".", "-")
				require.Equal(t, host, inside(t, server.ID, "cat", "/etc/hostname"))
				require.Equal(t, host, inside(t, server.ID, "hostname"))
				require.Equal(t, "create x86_64 hello none", inside(t, server.ID, "cat", "/etc/template"))
				require.Equal(t, "1000:100 640", inside(t, server.ID, "stat", "-c", "%u:%g %a", "/etc/template"))
				require.Equal(t, "127.0.0.1 localhost", inside(t, server.ID, "cat", "/etc/hosts"), "as it was: its template cannot be rendered")
				inside(t, server.ID, "rm", "/run-start")
				act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
				require.Equal(t, "start x86_64  none", inside(t, server.ID, "cat", "/run-start"))
				require.Equal(t, "none", inside(t, server.ID, "/bin/sh", "-c", "cat /etc/copied 2>/dev/null || echo none"))
			}
			if c.file == "unified.tar.zst" {
				templatesOfCopy(t, server)
			}
			remove(t, server.ID)
		})
	}
}

// templatesOfCopy takes a snapshot of a server, which gives it the templates of the server's image, and boots it: those that are for
// copies are applied, and those for a server's first boot are not, since the snapshot has what the server made of them.
func templatesOfCopy(t *testing.T, server cloud.Server) {
	t.Helper()
	inside(t, server.ID, "/bin/sh", "-c", "for f in hostname template hosts; do echo mine >/etc/$f; done; rm /run-start")
	id := createImage(t, server.ID, "copy-of-"+server.ID)
	imageActive(t, id)
	statusIn(t, time.Minute, server.ID, "ACTIVE")
	copied := boot(t, cloud.NewServer{Name: "formats-copied", Image: id})
	for file, want := range map[string]string{
		"/etc/hostname": "formats-copied",             // create and copy
		"/etc/copied":   "copy x86_64 again none",     // copy
		"/etc/template": "mine", "/etc/hosts": "mine", // create
		"/run-start": "start x86_64  none",
	} {
		require.Equal(t, want, inside(t, copied.ID, "cat", file), file)
	}
	require.Equal(t, "formats-copied", inside(t, copied.ID, "hostname"))
	out, err := imageCommand(t, "show", id, "-f", "json")
	require.NoError(t, err)
	var image struct {
		Metadata struct {
			Properties map[string]string
			Templates  map[string]any
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &image))
	require.Equal(t, []string{"/etc/copied", "/etc/hostname", "/etc/hosts", "/etc/template", "/run-start"}, slices.Sorted(maps.Keys(image.Metadata.Templates)))
	require.Equal(t, "formats", image.Metadata.Properties["release"])
	require.Equal(t, server.ID, image.Metadata.Properties["instance_uuid"])
	remove(t, copied.ID)
}

// TestImageOf32Bits: a 32-bit program runs, and sees a 32-bit machine.
func TestImageOf32Bits(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(program, []byte(`package main

import "runtime"

func main() { println(runtime.GOARCH) }
`), 0o600))
	shell(t, `cd `+dir+`; CGO_ENABLED=0 GOARCH=386 go build -o hello main.go
mkdir tree; tar -C tree --numeric-owner -xpf `+shared.Plane.BusyboxPath()+`; cp hello tree/bin/; tar -C tree --numeric-owner -czf root.tar.gz .`)
	server := boot(t, cloud.NewServer{Image: upload(t, filepath.Join(dir, "root.tar.gz"), "raw", map[string]any{"hw_architecture": "i686"})})
	require.Equal(t, "i686", inside(t, server.ID, "uname", "-m"))
	require.Equal(t, "386", inside(t, server.ID, "/bin/sh", "-c", "/bin/hello 2>&1"))
}

// TestRefusedImages: what cannot run here is refused with what was found and what would work.
func TestRefusedImages(t *testing.T) {
	dir := t.TempDir()
	shell(t, `cd `+dir+`
printf 'architecture: aarch64\ncreation_date: 1\n' >metadata.yaml; mkdir -p templates
tar -czf arm.tar.gz metadata.yaml templates
mkdir -p tree/etc tree/sbin; echo >tree/sbin/init; tar -C tree -cf root.tar .
tar -cf escape.tar --transform 's,^,../../,' -P metadata.yaml`)
	metadata := upload(t, filepath.Join(dir, "arm.tar.gz"), "raw", nil)
	for name, c := range map[string]struct {
		file, format string
		properties   map[string]any
		reason       string
	}{
		"architecture of metadata": {"root.tar", "raw", map[string]any{"lxc_metadata_image": metadata}, `architecture "aarch64"`},
		"metadata as the image":    {"arm.tar.gz", "raw", nil, "lxc_metadata_image"},
		"no such metadata":         {"root.tar", "raw", map[string]any{"lxc_metadata_image": "00000000-0000-4000-8000-000000000000"}, "could not be found"},
		"traversal":                {"escape.tar", "raw", nil, "'..'"},
	} {
		t.Run(name, func(t *testing.T) {
			id := create(t, cloud.NewServer{Image: upload(t, filepath.Join(dir, c.file), c.format, c.properties)})
			require.Contains(t, errored(t, id).Fault.Message, c.reason)
		})
	}
}

// TestUserDataOfSeed: an image with cloud-init's seed as a template has the server's user data in it.
func TestUserDataOfSeed(t *testing.T) {
	dir := t.TempDir()
	shell(t, `cd `+dir+`; mkdir -p rootfs templates; tar -C rootfs --numeric-owner -xpf `+shared.Plane.BusyboxPath()+`
printf '{{ config_get("user.user-data", properties.default) }}' >templates/user.tpl
cat >metadata.yaml <<EOF
architecture: x86_64
creation_date: 1
templates:
  /var/lib/cloud/seed/nocloud-net/user-data: {when: [create, copy], template: user.tpl, properties: {default: "#cloud-config"}}
EOF
tar --numeric-owner -czf unified.tar.gz metadata.yaml rootfs templates`)
	image := upload(t, filepath.Join(dir, "unified.tar.gz"), "raw", nil)
	data := "#cloud-config\npackages: [\"<none> & nothing\"]\n"
	server := boot(t, cloud.NewServer{Image: image, UserData: base64.StdEncoding.EncodeToString([]byte(data))})
	require.Equal(t, strings.TrimSpace(data), inside(t, server.ID, "cat", "/var/lib/cloud/seed/nocloud-net/user-data"))
}
