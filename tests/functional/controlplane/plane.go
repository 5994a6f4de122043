package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// Kinds of network, by the neutron L2 agent that wires it.
const (
	LinuxBridge = "linuxbridge"
	OVS         = "ovs"
)

// Names of what Up creates for the tests.
const (
	DemoNetwork  = "demo-net"
	BusyboxImage = "busybox-rootfs"
	DebianImage  = "debian-12-rootfs"
	NanoFlavor   = "m1.nano"
	SmallFlavor  = "m1.small"
)

// Where the services are. All of them are on the loopback.
const (
	AuthURL      = "http://127.0.0.1:5000/v3"
	region       = "RegionOne"
	physicalLink = "labphys0" // the link behind physnet1, which leads nowhere
)

// Password is every account's. The services listen on the loopback of a test machine only.
const Password = "lab-password"

// Environment variables that the harness reads.
const (
	EnvBase    = "COMPUTE_AGENT_LAB_BASE" // directory of the control plane
	EnvRunning = "COMPUTE_AGENT_LAB"      // set: the tests use the control plane that is up instead of bringing up their own
)

// Options says where the control plane is and of what kind.
type Options struct {
	Base string    // everything is below it; "" is $COMPUTE_AGENT_LAB_BASE, or what DefaultBase says of the release
	Net  string    // LinuxBridge or OVS; "" is what it was last, or what the release has
	Out  io.Writer // progress, one line a step; nil is standard error

	// Release is the name of one of OpenStack; "" is that of what Base holds, or DefaultRelease.
	Release string
}

// Plane is one control plane. Its methods may be used by one goroutine at a time, unless they say otherwise.
type Plane struct {
	Base string // absolute
	Root string // the chroot
	Net  string
	Host string // this machine's name, which the agents and services run under

	Release Release

	// Routers makes Up start neutron's L3 agent too, for routers and floating addresses. Its package is RouterPackage.
	Routers bool

	out   io.Writer
	start time.Time
	outMu sync.Mutex // guards writes to out
}

// DefaultBase is where the control plane of a release is, unless it is said.
func DefaultBase(release string) string {
	const base = "/var/lib/compute-agent-lab"
	if release == "" || release == DefaultRelease {
		return base
	}
	return base + "-" + release
}

// New describes a control plane; it touches nothing.
func New(o Options) (*Plane, error) {
	base, err := filepath.Abs(cmp.Or(o.Base, os.Getenv(EnvBase), DefaultBase(o.Release)))
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read host name: %w", err)
	}
	p := &Plane{Base: base, Root: filepath.Join(base, "root"), Host: host, out: o.Out, start: time.Now()}
	if p.out == nil {
		p.out = os.Stderr
	}
	held := p.mark("release")
	if held == "" && p.mark("packages") != "" {
		held = DefaultRelease // of before there were others
	}
	if p.Release, err = releaseNamed(cmp.Or(o.Release, held, DefaultRelease)); err != nil {
		return nil, err
	}
	if held != "" && held != p.Release.Name {
		return nil, fmt.Errorf("%s holds a control plane of %s: choose another directory for %s", p.Base, held, p.Release.Name)
	}
	p.Net = cmp.Or(o.Net, p.mark("net"), p.Release.nets[0])
	if !slices.Contains(p.Release.nets, p.Net) {
		return nil, fmt.Errorf("unknown kind of network %q: %s has %s", p.Net, p.Release.Name, strings.Join(p.Release.nets, " and "))
	}
	return p, nil
}

// Say prints a line of progress. Safe for concurrent use.
func (p *Plane) Say(format string, args ...any) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	fmt.Fprintf(p.out, "%5.1fs %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// Admin is a session of the administrator, Demo one of an ordinary tenant.
func (p *Plane) Admin(ctx context.Context) (*cloud.Client, error) { return connect(ctx, "admin") }

// Demo is a session of an ordinary tenant.
func (p *Plane) Demo(ctx context.Context) (*cloud.Client, error) { return connect(ctx, "demo") }

func connect(ctx context.Context, user string) (*cloud.Client, error) {
	return cloud.New(ctx, cloud.Auth{URL: AuthURL, Username: user, Password: Password, Project: user})
}

// administrator are the variables that the openstack client reads.
var administrator = []string{
	"OS_AUTH_URL=" + AuthURL, "OS_USERNAME=admin", "OS_PASSWORD=" + Password, "OS_PROJECT_NAME=admin",
	"OS_USER_DOMAIN_NAME=Default", "OS_PROJECT_DOMAIN_NAME=Default",
}

// OpenStack runs the openstack client as the administrator.
func (p *Plane) OpenStack(ctx context.Context, out io.Writer, args ...string) error {
	env := append(slices.Clip(administrator), "OS_COMPUTE_API_VERSION=2.79")
	text, err := capture(p.chrootCommand(ctx, "root", env, append([]string{"openstack"}, args...)...), "openstack "+strings.Join(args, " "))
	_, writeErr := io.WriteString(out, text)
	return errors.Join(err, writeErr)
}

// OpenStackProgram writes a program for scripts of the host: the openstack client as the administrator, of the API's oldest versions. It is
// called in a directory of the chroot.
func (p *Plane) OpenStackProgram(path string) error {
	line := p.chrootCommand(context.Background(), "root", administrator, "sh", "-c", `cd "$0" && exec openstack "$@"`).Args
	for i, word := range line {
		line[i] = quoted(word)
	}
	text := "#!/bin/sh\ndir=${PWD#" + quoted(p.Root) + "}\nexec " + strings.Join(line, " ") + ` "$dir" "$@"` + "\n"
	return os.WriteFile(path, []byte(text), 0o755)
}

// quoted is one word of a shell's.
func quoted(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Environment is how tests of single packages find the control plane.
func (p *Plane) Environment() []string {
	return []string{
		EnvBase + "=" + p.Base, EnvRunning + "=1", "AMQP_TEST_URL=" + TransportURL(),
		"OS_AUTH_URL=" + AuthURL, "OS_PASSWORD=" + Password, "OS_REGION_NAME=" + region,
		"COMPUTE_AGENT_TEST_IMAGES=" + filepath.Dir(p.DebianPath()), "COMPUTE_AGENT_DEBIAN_ROOTFS=" + p.DebianPath(),
	}
}

// TransportURL is where RabbitMQ is, in oslo.messaging's form.
func TransportURL() string { return "rabbit://openstack:" + Password + "@127.0.0.1:5672/" }

// path is a path below the base directory, chroot one below the chroot.
func (p *Plane) path(elem ...string) string {
	return filepath.Join(append([]string{p.Base}, elem...)...)
}

func (p *Plane) inRoot(elem ...string) string {
	return filepath.Join(append([]string{p.Root}, elem...)...)
}

// Marks are small files that remember what was done, so that a second Install or Up does not do it again.
func (p *Plane) mark(name string) string {
	text, err := os.ReadFile(p.path("marks", name))
	if err != nil {
		return "" // a mark that cannot be read is not there: the step is done again
	}
	return strings.TrimSpace(string(text))
}

func (p *Plane) setMark(name, value string) error {
	if err := os.MkdirAll(p.path("marks"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p.path("marks", name), []byte(value+"\n"), 0o600)
}

// once runs step unless the mark says that it was done.
func (p *Plane) once(name string, step func() error) error {
	if p.mark(name) != "" {
		return nil
	}
	if err := step(); err != nil {
		return err
	}
	return p.setMark(name, "done")
}

// together runs the steps at the same time and joins their errors.
func together(steps ...func() error) error {
	errs := make([]error, len(steps))
	var wg sync.WaitGroup
	for i, step := range steps {
		wg.Go(func() { errs[i] = step() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
