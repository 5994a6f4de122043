// Package lab puts a control plane and the agent under test together, for the tests, the benchmark and the demo.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/agent"
	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/host"
)

// Lab is a control plane with one agent.
type Lab struct {
	Plane *controlplane.Plane
	Agent *agent.Agent
	Host  string // that the agent runs as

	// AgentOptions go at the end of the agent's configuration file, sections and all.
	AgentOptions string

	// What Up finds in the control plane: a session of the administrator, and ids.
	Admin           *cloud.Client
	Busybox, Debian string // images
	Nano, Small     string // flavors
	Network         string // the network that is there for all
}

// New describes a lab; it touches nothing. net is as in controlplane.Options. The agent's files are below the control plane's
// directory, under the given name.
func New(net, agentName string) (*Lab, error) {
	plane, err := controlplane.New(controlplane.Options{Net: net})
	if err != nil {
		return nil, err
	}
	return &Lab{Plane: plane, Agent: agent.New(filepath.Join(plane.Base, agentName)), Host: plane.Host}, nil
}

// Join makes the lab's agent one of another host, so that it does not get in the way of the agents that a shared control plane has. It is for
// a lab whose agent does not run yet.
func (l *Lab) Join(ctx context.Context, hostname string) error {
	l.Host = hostname
	l.Agent = agent.New(filepath.Join(l.Plane.Base, filepath.Base(l.Agent.Dir)+"-"+hostname))
	return l.Plane.AddHost(ctx, hostname)
}

// Neighbour is the lab as seen from another host of the same control plane, with an agent of its own, which does not run yet.
func (l *Lab) Neighbour(ctx context.Context, hostname string) (*Lab, error) {
	other := *l
	other.Agent = agent.New(filepath.Join(l.Plane.Base, filepath.Base(l.Agent.Dir)+"-"+hostname))
	other.Agent.Binary = l.Agent.Binary
	other.Host = hostname
	return &other, l.Plane.AddHost(ctx, hostname)
}

// nobody is who an agent runs as that needs no privilege.
var nobody = syscall.Credential{Uid: 65534, Gid: 65534}

// Fake is Neighbour with an agent that has the fake driver, and no privilege.
func (l *Lab) Fake(ctx context.Context, hostname string) (*Lab, error) {
	other, err := l.Neighbour(ctx, hostname)
	other.Agent.User = &nobody
	other.AgentOptions = "[DEFAULT]\ncompute_driver = fake.FakeDriver\n"
	return other, err
}

// Up brings up the control plane, installing it first when needed, and finds what is in it.
func (l *Lab) Up(ctx context.Context) error {
	if err := l.Plane.Install(ctx); err != nil {
		return err
	}
	if err := l.Plane.Up(ctx); err != nil {
		return err
	}
	return l.find(ctx)
}

// UpForTests is Up for a run that ends the control plane itself, unless COMPUTE_AGENT_LAB says to use the one that is up: a control
// plane that somebody else uses is not to be ended.
func (l *Lab) UpForTests(ctx context.Context) error {
	switch running, shared := l.Plane.Running(), Shared(); {
	case shared && !running:
		return fmt.Errorf("%s is set, but no control plane is up in %s", controlplane.EnvRunning, l.Plane.Base)
	case shared:
		return l.find(ctx)
	case running:
		return fmt.Errorf("a control plane is up in %s: end it, or set %s=1 to use it", l.Plane.Base, controlplane.EnvRunning)
	}
	return l.Up(ctx)
}

// Shared reports whether the control plane is somebody else's.
func Shared() bool { return os.Getenv(controlplane.EnvRunning) != "" }

func (l *Lab) find(ctx context.Context) error {
	var err error
	if l.Admin, err = l.Plane.Admin(ctx); err != nil {
		return err
	}
	for _, wanted := range []struct {
		id   *string
		find func(context.Context, string) (string, error)
		name string
	}{
		{&l.Busybox, l.Admin.ImageID, controlplane.BusyboxImage},
		{&l.Debian, l.Admin.ImageID, controlplane.DebianImage},
		{&l.Nano, l.Admin.FlavorID, controlplane.NanoFlavor},
		{&l.Small, l.Admin.FlavorID, controlplane.SmallFlavor},
		{&l.Network, l.Admin.NetworkID, controlplane.DemoNetwork},
	} {
		if *wanted.id, err = wanted.find(ctx, wanted.name); err != nil {
			return err
		}
		if *wanted.id == "" {
			return fmt.Errorf("the control plane has no %s", wanted.name)
		}
	}
	return nil
}

// StartAgent starts the agent, which Build has made, unless it runs, and waits until it serves and the scheduler may choose its host.
// Nova may say that of the agent before this one, and knows a host before Placement knows what it has.
func (l *Lab) StartAgent(ctx context.Context) error {
	if l.Agent.PID() == 0 {
		text, err := l.Plane.AgentConfig(l.Host, l.Agent.Dir)
		if err != nil {
			return err
		}
		if err := l.Agent.Configure(text + l.AgentOptions); err != nil {
			return err
		}
		if err := l.Agent.Start(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go func() {
		select {
		case <-l.Agent.Ended(): // nil, so never, for an agent of another process
			text, _, _ := l.Agent.Log(0) // what it wrote is all that can be told
			fail(fmt.Errorf("the agent has ended: %s", text[max(0, len(text)-500):]))
		case <-ctx.Done():
		}
	}()
	if err := l.Agent.WaitServing(ctx); err != nil {
		return err
	}
	if err := l.Plane.WaitCompute(ctx, l.Host); err != nil {
		return err
	}
	return cloud.Poll(ctx, 200*time.Millisecond, "the inventories of host "+l.Host, func() (bool, error) {
		_, inventories, err := l.Admin.Provider(ctx, l.Host)
		return len(inventories) > 0, err
	})
}

// StopAgent ends the agent and whatever containers it left.
func (l *Lab) StopAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return errors.Join(l.Agent.Signal(ctx, syscall.SIGTERM), host.Purge(ctx, l.Agent.Dir))
}

// DeleteServers deletes all servers of all projects.
func (l *Lab) DeleteServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	admin, err := l.Plane.Admin(ctx)
	if err != nil {
		return err
	}
	servers, err := admin.Servers(ctx, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, server := range servers {
		errs = append(errs, admin.DeleteServer(ctx, server.ID))
	}
	for _, server := range servers {
		errs = append(errs, admin.WaitGone(ctx, server.ID))
	}
	return errors.Join(errs...)
}

// Netns is the network namespace of the common network's DHCP server, from which servers can be reached.
func (l *Lab) Netns() string { return "qdhcp-" + l.Network }

// Reports is how often the compute service of a host has reported, out of nova's database: the API does not show it. It is -1 for a
// host that nova does not know.
func (l *Lab) Reports(ctx context.Context, hostname string) (int, error) {
	text, err := l.Plane.SQL(ctx, "SELECT COALESCE(MAX(report_count), -1) FROM nova.services WHERE deleted = 0 "+
		"AND `binary` = 'nova-compute' AND host = '"+hostname+"'")
	if err != nil {
		return 0, err
	}
	var count int
	if _, err := fmt.Sscan(text, &count); err != nil {
		return 0, fmt.Errorf("read report count %q: %w", text, err)
	}
	return count, nil
}
