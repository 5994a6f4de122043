package controlplane

import (
	"context"
	"maps"
	"os"
	"strings"
)

// SSHImagePackage has the ssh server of SSHImage; AddPackages brings it into the chroot.
const SSHImagePackage = "dropbear-bin"

const (
	sshServer  = "/usr/sbin/dropbear"
	sshHostKey = "etc/dropbear/dropbear_ed25519_host_key"
)

// sshFiles are what the ssh image has besides the busybox one. It keeps the host name that the container was given, and takes keys and
// personality files from the config drive, as cloud-init does.
var sshFiles = map[string]string{
	"etc/inittab": "::sysinit:/etc/init.d/rcS\n::respawn:" + sshServer + " -F -E\n" +
		"::ctrlaltdel:/bin/busybox poweroff\n::shutdown:/etc/init.d/rcK\n",
	"etc/init.d/rcS": strings.ReplaceAll(busyboxFiles["etc/init.d/rcS"],
		"hostname -F /etc/hostname 2>/dev/null\n", "/etc/init.d/config-drive\n"),
	"etc/init.d/config-drive": `#!/bin/sh
drive=/config-drive/openstack
meta=$drive/latest/meta_data.json
umask 077
mkdir -p /root/.ssh /etc/dropbear
[ -f "$meta" ] || exit 0
grep -oE '(ssh|ecdsa)-[a-z0-9-]+ [A-Za-z0-9+/=]+' "$meta" | sort -u >/root/.ssh/authorized_keys
tr '{}' '\n\n' <"$meta" | grep '"content_path"' | while read -r file; do
  from=$(echo "$file" | sed -n 's/.*"content_path": *"\([^"]*\)".*/\1/p')
  to=$(echo "$file" | sed -n 's/.*"path": *"\([^"]*\)".*/\1/p')
  mkdir -p "/$(dirname "$to")"
  cat "$drive/$from" >"/$to"
done
`,
	// There is one user.
	"usr/bin/sudo": "#!/bin/sh\nexec \"$@\"\n",
}

// SSHImage is the busybox image with an ssh server, for tests that log in. It is made when it is asked for the first time. Its servers have one
// host key: Tempest gives a floating address to another server, logs in before Neutron has moved it, and keeps the first key that it sees.
func (p *Plane) SSHImage(ctx context.Context) (string, error) {
	path := p.path("images", "busybox-ssh-rootfs.tar.gz")
	return path, p.once("ssh-image", func() error {
		if err := p.AddPackages(ctx, SSHImagePackage); err != nil {
			return err
		}
		key, err := p.newSSHHostKey(ctx)
		if err != nil {
			return err
		}
		files := maps.Clone(busyboxFiles)
		maps.Copy(files, sshFiles)
		files[sshHostKey] = key
		return p.busyboxTree(ctx, path, files, []string{sshServer})
	})
}

func (p *Plane) newSSHHostKey(ctx context.Context) (string, error) {
	const file = "/root/ssh-host-key"
	if err := os.RemoveAll(p.inRoot(file)); err != nil {
		return "", err
	}
	if _, err := p.Run(ctx, "root", "dropbearkey", "-t", "ed25519", "-f", file); err != nil {
		return "", err
	}
	key, err := os.ReadFile(p.inRoot(file))
	return string(key), err
}

// libraries are the paths of what the programs of the chroot are linked with, the dynamic linker among them.
func (p *Plane) libraries(ctx context.Context, programs []string) ([]string, error) {
	if len(programs) == 0 {
		return nil, nil
	}
	text, err := p.Run(ctx, "root", append([]string{"ldd"}, programs...)...)
	return linked(text), err
}

// linked reads ldd's answer: "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)", and "/lib64/ld-linux-x86-64.so.2 (0x…)".
func linked(text string) []string {
	var paths []string
	for line := range strings.Lines(text) {
		for field := range strings.FieldsSeq(line) {
			if strings.HasPrefix(field, "/") && !strings.HasSuffix(field, ":") {
				paths = append(paths, field)
			}
		}
	}
	return paths
}
