// Command demo shows compute-agent at work: `demo up` brings up a control plane, starts the agent and boots a server; `demo down`
// leaves nothing of it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/agent"
	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/host"
)

const serverName = "demo"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	plane, err := controlplane.New(controlplane.Options{})
	if err != nil {
		return err
	}
	d := demo{plane: plane, agent: agent.New(filepath.Join(plane.Base, "agent"))}
	switch {
	case len(os.Args) == 2 && os.Args[1] == "up":
		return d.up(ctx)
	case len(os.Args) == 2 && os.Args[1] == "down":
		return d.down(ctx, os.Getenv("KEEP_CACHE") != "")
	}
	return errors.New("usage: demo up|down")
}

type demo struct {
	plane *controlplane.Plane
	agent *agent.Agent
}

func (d demo) up(ctx context.Context) error {
	d.plane.Say("building compute-agent")
	if err := d.agent.Build(ctx); err != nil {
		return err
	}
	if err := d.plane.Install(ctx); err != nil {
		return err
	}
	if err := d.plane.Up(ctx); err != nil {
		return err
	}
	if d.agent.PID() == 0 {
		if err := d.agent.Configure(d.plane.AgentConfig(d.agent.Dir)); err != nil {
			return err
		}
		if err := d.agent.Start(); err != nil {
			return err
		}
	}
	d.plane.Say("the agent runs as process %d, waiting for Nova to see it", d.agent.PID())
	waitCtx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.plane.WaitCompute(waitCtx, d.plane.Host); err != nil {
		return d.withLog(err)
	}
	return d.withLog(d.boot(ctx))
}

// boot boots a server, unless it is there, and shows it.
func (d demo) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	admin, err := d.plane.Admin(ctx)
	if err != nil {
		return err
	}
	image, imageErr := admin.ImageID(ctx, controlplane.DebianImage)
	flavor, flavorErr := admin.FlavorID(ctx, controlplane.SmallFlavor)
	network, networkErr := admin.NetworkID(ctx, controlplane.DemoNetwork)
	servers, listErr := admin.Servers(ctx, serverName+"$")
	if err := errors.Join(imageErr, flavorErr, networkErr, listErr); err != nil {
		return err
	}
	var id string
	if len(servers) > 0 {
		id = servers[0].ID
	} else {
		d.plane.Say("booting a server from image %s", controlplane.DebianImage)
		id, err = admin.CreateServer(ctx, cloud.NewServer{
			Name: serverName, Image: image, Flavor: flavor, Networks: cloud.OnNetwork(network),
		})
		if err != nil {
			return err
		}
	}
	server, err := admin.WaitStatus(ctx, id, "ACTIVE")
	if err != nil {
		return err
	}
	d.plane.Say("the server is ACTIVE, waiting for it to answer at %s", server.IP())
	netns := "qdhcp-" + network
	err = cloud.Poll(ctx, 200*time.Millisecond, "an answer to ping", func() (bool, error) {
		return host.Ping(ctx, netns, server.IP()) == nil, nil
	})
	if err != nil {
		return err
	}
	if err := d.plane.OpenStack(ctx, os.Stdout, "server", "list", "--long", "-c", "Name", "-c", "Status", "-c", "Networks", "-c", "Image Name", "-c", "Host"); err != nil {
		return err
	}
	ping := []string{"ip", "netns", "exec", netns, "ping", "-c", "2", server.IP()}
	fmt.Println("\n#", strings.Join(ping, " "))
	cmd := exec.CommandContext(ctx, ping[0], ping[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	inside := []string{"sh", "-c", ". /etc/os-release; echo $PRETTY_NAME; cat /proc/1/comm; hostname; ip -4 -brief address"}
	fmt.Printf("\n# compute-agent exec %s -- %s '%s'\n", server.InstanceName, strings.Join(inside[:2], " "), inside[2])
	out, err := d.agent.Exec(ctx, id, inside...)
	fmt.Print(out)
	if err != nil {
		return err
	}
	fmt.Println()
	d.plane.Say("done; the agent's log is %s, `make demo-down` ends everything", d.agent.LogFile())
	return nil
}

// withLog adds the end of the agent's log to an error.
func (d demo) withLog(err error) error {
	if err == nil {
		return nil
	}
	const lines = 15
	log, _, readErr := d.agent.Log(0)
	all := strings.Split(strings.TrimSpace(log), "\n")
	return errors.Join(fmt.Errorf("%w\nthe agent's log ends so:\n%s", err, strings.Join(all[max(0, len(all)-lines):], "\n")), readErr)
}

func (d demo) down(ctx context.Context, keepCache bool) error {
	var errs []error
	if d.plane.Running() && d.agent.PID() != 0 {
		d.plane.Say("deleting servers")
		errs = append(errs, d.deleteServers(ctx))
	}
	errs = append(errs,
		d.agent.Signal(ctx, syscall.SIGTERM),
		host.Purge(ctx, d.agent.Dir), // in case the agent could not
		d.plane.Down(ctx),
	)
	if keepCache {
		errs = append(errs, os.RemoveAll(d.agent.Dir))
	} else {
		errs = append(errs, d.plane.Remove())
	}
	return errors.Join(errs...)
}

func (d demo) deleteServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	admin, err := d.plane.Admin(ctx)
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
