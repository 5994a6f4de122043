// Command demo shows compute-agent at work: `demo up` brings up a control plane, starts the agent and boots a server; `demo down`
// leaves nothing of it.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/host"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
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
	l, err := lab.New(cmp.Or(os.Getenv("NET"), controlplane.LinuxBridge), "agent")
	if err != nil {
		return err
	}
	d := demo{l}
	switch {
	case len(os.Args) == 2 && os.Args[1] == "up":
		return d.up(ctx)
	case len(os.Args) == 2 && os.Args[1] == "down":
		return d.down(ctx, os.Getenv("KEEP_CACHE") != "")
	}
	return errors.New("usage: demo up|down")
}

type demo struct{ *lab.Lab }

func (d demo) up(ctx context.Context) error {
	d.Plane.Say("building compute-agent")
	if err := d.Agent.Build(ctx); err != nil {
		return err
	}
	if err := d.Up(ctx); err != nil {
		return err
	}
	d.Plane.Say("starting the agent")
	if err := d.StartAgent(ctx); err != nil {
		return d.withLog(err)
	}
	return d.withLog(d.boot(ctx))
}

// boot boots a server, unless it is there, and shows it.
func (d demo) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	servers, err := d.Admin.Servers(ctx, serverName+"$")
	if err != nil {
		return err
	}
	var id string
	if len(servers) > 0 {
		id = servers[0].ID
	} else {
		d.Plane.Say("booting a server from image %s", controlplane.DebianImage)
		id, err = d.Admin.CreateServer(ctx, cloud.NewServer{
			Name: serverName, Image: d.Debian, Flavor: d.Small, Networks: cloud.OnNetwork(d.Network),
		})
		if err != nil {
			return err
		}
	}
	server, err := d.Admin.WaitStatus(ctx, id, "ACTIVE")
	if err != nil {
		return err
	}
	d.Plane.Say("the server is ACTIVE, waiting for it to answer at %s", server.IP())
	netns := d.Netns()
	err = cloud.Poll(ctx, 200*time.Millisecond, "an answer to ping", func() (bool, error) {
		return host.Ping(ctx, netns, server.IP()) == nil, nil
	})
	if err != nil {
		return err
	}
	fmt.Println("\n# openstack server list")
	if err := d.Plane.OpenStack(ctx, os.Stdout, "server", "list"); err != nil {
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
	out, err := d.Agent.Exec(ctx, id, inside...)
	fmt.Print(out)
	if err != nil {
		return err
	}
	fmt.Println()
	d.Plane.Say("done; the agent's log is %s, `make demo-down` ends everything", d.Agent.LogFile())
	return nil
}

// withLog adds the end of the agent's log to an error.
func (d demo) withLog(err error) error {
	if err == nil {
		return nil
	}
	const lines = 15
	log, _, readErr := d.Agent.Log(0)
	all := strings.Split(strings.TrimSpace(log), "\n")
	return errors.Join(fmt.Errorf("%w\nthe agent's log ends so:\n%s", err, strings.Join(all[max(0, len(all)-lines):], "\n")), readErr)
}

func (d demo) down(ctx context.Context, keepCache bool) error {
	var errs []error
	if d.Plane.Running() && d.Agent.PID() != 0 {
		d.Plane.Say("deleting servers")
		errs = append(errs, d.DeleteServers(ctx))
	}
	errs = append(errs, d.StopAgent(ctx), d.Plane.Down(ctx))
	if keepCache {
		errs = append(errs, os.RemoveAll(d.Agent.Dir))
	} else {
		errs = append(errs, d.Plane.Remove())
	}
	return errors.Join(errs...)
}
