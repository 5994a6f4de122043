package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// packages of the chroot in every release. nova-compute is not among them: its code is in python3-nova, and that is enough for the peer.
var packages = []string{
	"mariadb-server", "rabbitmq-server", "memcached",
	"keystone", "glance-api", "placement-api",
	"nova-api", "nova-conductor", "nova-scheduler", "python3-websockify",
	"neutron-common", "neutron-dhcp-agent", "neutron-metadata-agent",
	"neutron-openvswitch-agent",
	"python3-openstackclient", "python3-pymysql",
	"uwsgi-plugin-python3", "openvswitch-switch", "dnsmasq-base", "haproxy",
	"bridge-utils", "nftables", "iptables", "ebtables", "ipset", "conntrack", "iproute2", "procps", "sudo", "busybox-static",
}

// guestSuite is the Debian of the guest image, whatever the release of the control plane: Debian 12.
const guestSuite = "bookworm"

// minbase is a Debian system without anything, the start of the chroot or of the guest image.
func (p *Plane) minbase(suite string) string {
	if suite == guestSuite {
		return p.path("minbase")
	}
	return p.path("minbase-" + suite)
}

// Install makes the chroot and the images. It needs root, apt and debootstrap, takes minutes the first time and nothing afterwards.
func (p *Plane) Install(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the control plane needs root")
	}
	if err := os.MkdirAll(p.path("log"), 0o755); err != nil {
		return err
	}
	if err := p.setMark("release", p.Release.Name); err != nil {
		return err
	}
	for _, suite := range slices.Compact([]string{guestSuite, p.Release.suite}) {
		if err := p.once(filepath.Base(p.minbase(suite)), func() error {
			p.Say("fetching a Debian base system (%s)", suite)
			return p.debootstrap(ctx, suite)
		}); err != nil {
			return err
		}
	}
	err := together(
		func() error {
			return p.once("packages", func() error {
				p.Say("installing the control plane's packages of %s (about 280 MB, some minutes)", p.Release.Name)
				return p.installPackages(ctx)
			})
		},
		func() error { return p.once("debian-image", func() error { return p.makeDebianImage(ctx) }) },
	)
	if err != nil {
		return err
	}
	return p.once("busybox-image", func() error { return p.makeBusyboxImage(ctx) })
}

// RouterPackage is what Plane.Routers needs.
const RouterPackage = "neutron-l3-agent"

// AddPackages installs more packages in the chroot, which Install has made, unless they are there. No service of theirs starts.
func (p *Plane) AddPackages(ctx context.Context, packages ...string) (err error) {
	missing := slices.DeleteFunc(slices.Clone(packages), func(name string) bool {
		state, err := p.Run(ctx, "root", "dpkg-query", "-W", "-f", "${db:Status-Status}", name)
		return err == nil && state == "installed"
	})
	if len(missing) == 0 {
		return nil
	}
	p.Say("installing %s", strings.Join(missing, ", "))
	if !p.Running() { // else everything is mounted, and somebody's
		if err := p.mount(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.killAll(context.WithoutCancel(ctx)), p.unmount()) }()
	}
	return p.aptInstall(ctx, p.Root, "apt", missing)
}

// source is one place that apt takes a suite of Debian from.
type source struct{ uri, release string }

// sources are those of a suite. The mirrors are read out of apt's own view of this machine's configuration, which is Debian 12's: they carry
// the other suites too.
func sources(ctx context.Context, suite string) ([]source, error) {
	text, err := host(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	var found []source
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "main" {
			continue
		}
		part, ours := strings.CutPrefix(fields[1], guestSuite)
		s := source{strings.TrimSuffix(fields[0], "/"), suite + part}
		if ours && slices.Contains(suiteParts(suite), part) && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	if !slices.ContainsFunc(found, func(s source) bool { return s.release == suite }) {
		return nil, fmt.Errorf("find a mirror: the apt sources of this machine have no %s main; is it Debian 12?", guestSuite)
	}
	return found, nil
}

// suiteParts are what follows the name of a suite in those that belong to it. Debian's unstable one has nothing but itself.
func suiteParts(suite string) []string {
	if suite == "sid" {
		return []string{""}
	}
	return []string{"", "-updates", "-security"}
}

func (p *Plane) debootstrap(ctx context.Context, suite string) error {
	from, err := sources(ctx, suite)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(from, func(s source) bool { return s.release == suite })
	err = retry(ctx, func() error {
		if err := os.RemoveAll(p.minbase(suite)); err != nil {
			return err
		}
		_, err := host(ctx, "debootstrap", "--variant=minbase", "--include=ca-certificates", suite, p.minbase(suite), from[i].uri)
		return err
	})
	if err != nil {
		return err
	}
	settings, err := aptSettings(ctx)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, s := range from {
		fmt.Fprintf(&list, "deb %s %s main\n", s.uri, s.release)
	}
	files := map[string]string{
		"etc/apt/sources.list":     list.String(),
		"etc/apt/apt.conf.d/90lab": settings,
		"etc/dpkg/dpkg.cfg.d/lab":  "force-unsafe-io\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/locale/*\n",
		"usr/sbin/policy-rc.d":     "#!/bin/sh\nexit 101\n", // no service starts by itself
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(p.minbase(suite), name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(p.minbase(suite), "usr/sbin/policy-rc.d"), 0o755)
}

// aptSettings are this machine's own about proxies and checks: what reaches the mirror here must reach it from the chroot.
func aptSettings(ctx context.Context) (string, error) {
	text, err := host(ctx, "apt-config", "dump", "--no-empty", "Acquire")
	if err != nil {
		return "", err
	}
	var settings strings.Builder
	settings.WriteString("APT::Install-Recommends \"false\";\nAcquire::Retries \"3\";\nAcquire::Languages \"none\";\nAPT::Update::Error-Mode \"any\";\n")
	for line := range strings.Lines(text) {
		for _, prefix := range []string{"Acquire::Check-", "Acquire::http::", "Acquire::https::", "Acquire::AllowInsecure"} {
			if strings.HasPrefix(line, prefix) {
				settings.WriteString(line)
			}
		}
	}
	return settings.String(), nil
}

// retry runs a step that depends on the network again when it fails.
func retry(ctx context.Context, step func() error) error {
	const tries = 6
	for try := 1; ; try++ {
		err := step()
		if err == nil || try == tries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * 5 * time.Second):
		}
	}
}

// copyMinbase starts a root file system at the target.
func (p *Plane) copyMinbase(ctx context.Context, suite, target string) error {
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if _, err := host(ctx, "cp", "-a", "--reflink=auto", p.minbase(suite), target); err != nil {
		return err
	}
	return copyFile("/etc/resolv.conf", filepath.Join(target, "etc/resolv.conf"))
}

// aptInstall installs packages in a root file system.
func (p *Plane) aptInstall(ctx context.Context, root, log string, packages []string) error {
	in := &Plane{Base: p.Base, Root: root}
	env := []string{"DEBIAN_FRONTEND=noninteractive"}
	for _, name := range proxies {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	run := func(args ...string) error { return p.logged(in.chrootCommand(ctx, "root", env, args...), log) }
	return retry(ctx, func() error {
		if err := run("dpkg", "--configure", "-a"); err != nil {
			return err
		}
		if err := run("apt-get", "-q", "update"); err != nil {
			return err
		}
		if err := run(append([]string{"apt-get", "-q", "install", "-y", "--no-install-recommends"}, packages...)...); err != nil {
			return err
		}
		return run("apt-get", "clean")
	})
}

func (p *Plane) installPackages(ctx context.Context) error {
	if err := p.unmount(); err != nil { // of an Install that was cut short
		return err
	}
	if err := p.copyMinbase(ctx, p.Release.suite, p.Root); err != nil {
		return err
	}
	if err := p.mount(); err != nil {
		return err
	}
	// The packages would set up databases and endpoints; the harness does that itself.
	var answers strings.Builder
	for _, name := range []string{
		"keystone", "glance-common", "glance-api", "nova-common", "nova-api", "placement-common", "placement-api",
		"neutron-common", "neutron-api", "barbican-common",
	} {
		fmt.Fprintf(&answers, "%s %s/configure_db boolean false\n%s %s/register-endpoint boolean false\n", name, name, name, name)
	}
	if err := p.writeFile("root/answers", answers.String(), 0o600); err != nil {
		return err
	}
	if err := p.aptInstall(ctx, p.Root, "apt", []string{"dbconfig-no-thanks", "debconf-utils"}); err != nil {
		return err
	}
	if _, err := p.Run(ctx, "root", "debconf-set-selections", "/root/answers"); err != nil {
		return err
	}
	if err := p.aptInstall(ctx, p.Root, "apt", slices.Concat(packages, p.Release.packages)); err != nil {
		return err
	}
	// A service that the packages started in spite of policy-rc.d (epmd does) holds a port and the mounts.
	return errors.Join(p.killAll(ctx), p.unmount())
}
