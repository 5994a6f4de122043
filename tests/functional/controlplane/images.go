package controlplane

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// BusyboxPath is the busybox image file, for tests that need its bytes.
func (p *Plane) BusyboxPath() string { return p.path("images", "busybox-rootfs.tar.gz") }

// DebianPath is the Debian image file.
func (p *Plane) DebianPath() string { return p.path("images", "debian-12-rootfs.tar.xz") }

// debianPackages make a system out of the base: an init, a network, ssh, cloud-init.
var debianPackages = []string{
	"systemd-sysv", "dbus", "iproute2", "iputils-ping", "openssh-server", "ifupdown", "isc-dhcp-client", "netbase", "procps", "cloud-init",
}

// debianFiles of the guest. Only an interface with neutron's address prefix is configured.
var debianFiles = map[string]string{
	"etc/hostname":           "debian\n",
	"etc/hosts":              "127.0.0.1 localhost\n",
	"etc/machine-id":         "",
	"etc/network/interfaces": "auto lo\niface lo inet loopback\nallow-hotplug eth0\nauto eth0\niface eth0 inet dhcp\n  pre-up grep -q ^fa:16:3e: /sys/class/net/eth0/address\n",
	"etc/cloud/cloud.cfg.d/90_lab.cfg": "datasource_list: [ ConfigDrive, OpenStack, None ]\n" +
		"datasource:\n  OpenStack: {max_wait: 10, timeout: 3, retries: 1}\nnetwork: {config: disabled}\n",
	"etc/systemd/system/ssh-hostkeys.service": "[Unit]\nDescription=make ssh host keys at first boot\nBefore=ssh.service\n" +
		"ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n[Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -A\n" +
		"[Install]\nWantedBy=multi-user.target\n",
}

// makeDebianImage builds the root file system of a Debian 12 guest.
func (p *Plane) makeDebianImage(ctx context.Context) error {
	tree := p.path("guest")
	if err := p.debianTree(ctx, tree, debianPackages, debianFiles); err != nil {
		return err
	}
	if err := os.MkdirAll(p.path("images"), 0o755); err != nil {
		return err
	}
	_, err := host(ctx, "tar", "-C", tree, "--numeric-owner", "--xattrs", "--use-compress-program=xz -T0 -2", "-cf", p.DebianPath(), ".")
	return errors.Join(err, os.RemoveAll(tree))
}

// debianTree makes a root file system of the packages and the files.
func (p *Plane) debianTree(ctx context.Context, tree string, packages []string, files map[string]string) error {
	if err := p.copyMinbase(ctx, guestSuite, tree); err != nil {
		return err
	}
	if err := p.aptInstall(ctx, tree, "apt-"+filepath.Base(tree), packages); err != nil {
		return err
	}
	for name, text := range files {
		file := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	wants := filepath.Join(tree, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.Symlink("../ssh-hostkeys.service", filepath.Join(wants, "ssh-hostkeys.service")); err != nil {
		return err
	}
	var leave []string // out of the image
	for _, pattern := range []string{
		"usr/sbin/policy-rc.d", "etc/resolv.conf", "etc/apt/sources.list", "etc/apt/apt.conf.d/*lab*", "etc/ssh/ssh_host_*",
		"var/cache/apt/*.bin", "var/lib/apt/lists/*", "var/log/*.log", "usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*",
	} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		leave = append(leave, found...)
	}
	for _, path := range leave {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// busyboxFiles of the guest: an init that brings up the interfaces with neutron's address prefix by DHCP, a web page, a console log
// that says what happens, and a shell script for DHCP.
var busyboxFiles = map[string]string{
	"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\n",
	"etc/shadow":   "root::0:0:99999:7:::\n",
	"etc/group":    "root:x:0:\n",
	"etc/hostname": "busybox\n",
	"etc/hosts":    "127.0.0.1 localhost\n",
	"etc/inittab": "::sysinit:/etc/init.d/rcS\n::respawn:/bin/busybox httpd -f -p 80 -h /www\n" +
		"::ctrlaltdel:/bin/busybox poweroff\n::shutdown:/etc/init.d/rcK\n",
	"www/index.html": "busybox ok\n",
	"etc/init.d/rcS": `#!/bin/sh
PATH=/bin:/sbin:/usr/bin:/usr/sbin
[ -d /proc/1 ] || mount -t proc proc /proc
[ -c /dev/console ] && exec >/dev/console 2>&1
echo "busybox: booting, pid 1 is $(cat /proc/1/comm)"
hostname -F /etc/hostname 2>/dev/null
ip link set lo up
for i in /sys/class/net/*; do
  n=${i##*/}
  case $(cat "$i/address") in fa:16:3e:*) ;; *) continue ;; esac
  ip link set "$n" up
  udhcpc -O staticroutes -b -t 5 -T 2 -A 5 -i "$n" -s /usr/share/udhcpc/default.script -p "/run/udhcpc.$n.pid"
done
echo "busybox: ready"
`,
	"etc/init.d/rcK": `#!/bin/sh
echo "busybox: shutting down" >/dev/console
`,
	"usr/share/udhcpc/default.script": `#!/bin/sh
PATH=/bin:/sbin:/usr/bin:/usr/sbin
case "$1" in
deconfig) ip -4 addr flush dev "$interface"; ip link set "$interface" up ;;
bound|renew)
  ip -4 addr flush dev "$interface"
  ip addr add "$ip/${mask:-24}" dev "$interface"
  [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
  if [ -n "$staticroutes" ]; then set -- $staticroutes; while [ $# -ge 2 ]; do ip route replace "$1" via "$2" dev "$interface"; shift 2; done; fi
  for r in $router; do ip route replace default via "$r" dev "$interface"; break; done
  : >/etc/resolv.conf; for n in $dns; do echo "nameserver $n" >>/etc/resolv.conf; done
  echo "busybox: lease $ip on $interface" ;;
esac
`,
}

// makeBusyboxImage builds a root file system of one program, for tests that boot many servers.
func (p *Plane) makeBusyboxImage(ctx context.Context) error {
	return p.busyboxTree(ctx, p.BusyboxPath(), busyboxFiles, nil)
}

// busyboxTree makes an archive of busybox, the files, and programs of the chroot with the libraries that they need.
func (p *Plane) busyboxTree(ctx context.Context, path string, files map[string]string, programs []string) (err error) {
	if err := os.MkdirAll(p.path("images"), 0o755); err != nil {
		return err
	}
	program, err := os.ReadFile(p.inRoot("bin/busybox"))
	if err != nil {
		return err
	}
	applets, err := p.Run(ctx, "root", "/bin/busybox", "--list-full")
	if err != nil {
		return err
	}
	libraries, err := p.libraries(ctx, programs)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	zip := gzip.NewWriter(file)
	archive := tar.NewWriter(zip)
	defer func() { err = errors.Join(err, archive.Close(), zip.Close(), file.Close()) }()

	image := imageWriter{archive, map[string]bool{}}
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "root", "var/log", "usr/bin", "usr/sbin"} {
		image.dir(dir)
	}
	image.file("bin/busybox", string(program), 0o755)
	for _, name := range append(libraries, programs...) {
		data, err := os.ReadFile(p.inRoot(name))
		if err != nil {
			return err
		}
		image.file(strings.TrimPrefix(name, "/"), string(data), 0o755)
	}
	for applet := range strings.FieldsSeq(applets) {
		if applet != "bin/busybox" && applet != "linuxrc" {
			image.link(applet, "/bin/busybox")
		}
	}
	image.link("sbin/init", "/bin/busybox")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		mode := int64(0o644)
		switch {
		case strings.HasPrefix(text, "#!"):
			mode = 0o755
		case name == "etc/shadow":
			mode = 0o600
		}
		image.file(name, text, mode)
	}
	return nil
}

// imageWriter adds entries to an archive; parents come by themselves, a repeated name is dropped. A write error surfaces at Close.
type imageWriter struct {
	tar  *tar.Writer
	seen map[string]bool
}

func (w imageWriter) add(h tar.Header, data string) {
	if w.seen[h.Name] {
		return
	}
	w.seen[h.Name] = true
	if parent := filepath.Dir(strings.TrimSuffix(h.Name, "/")); parent != "." {
		w.dir(parent)
	}
	h.ModTime = time.Unix(1_700_000_000, 0) // the same bytes every time
	h.Size = int64(len(data))
	if err := w.tar.WriteHeader(&h); err == nil {
		_, _ = io.WriteString(w.tar, data)
	}
}

func (w imageWriter) dir(name string) {
	w.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, "")
}

func (w imageWriter) file(name, data string, mode int64) {
	w.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, data)
}

func (w imageWriter) link(name, target string) {
	w.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}
