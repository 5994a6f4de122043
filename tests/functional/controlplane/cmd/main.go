// Command controlplane installs, starts and stops the OpenStack control plane of the functional tests.
//
//	go run ./tests/functional/controlplane/cmd [-base DIR] [-release NAME] [-net linuxbridge|ovs] COMMAND
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

const usage = `usage: controlplane [-base DIR] [-release NAME] [-net linuxbridge|ovs] COMMAND
  install         fetch and unpack everything (needs apt)
  up              start it; installs it first when needed
  run CMD ARG...  up, run the command with variables that tell tests where it is, down
  down            stop it and leave the host as it was
  remove          down, and delete the directory
  status          list the daemons
  os ARG...       the openstack client, as the administrator
  add-host H      make this machine another compute host H besides the one of its own name; remove-host H ends that
  agent-config D [H]  print the configuration of an agent, of host H, that keeps its state below D
  key-manager     start Barbican too, for signed images
  peer            start the distribution's nova-compute with the fake driver, as host "peer"
`

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
	var options controlplane.Options
	flag.StringVar(&options.Base, "base", "", "directory of the control plane (default $COMPUTE_AGENT_LAB_BASE, or below /var/lib by the release)")
	flag.StringVar(&options.Release, "release", "", "of OpenStack: zed, epoxy or hibiscus (default what the directory holds, or zed)")
	flag.StringVar(&options.Net, "net", "", "linuxbridge or ovs (default what it was last, or the first that the release has)")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	plane, err := controlplane.New(options)
	if err != nil {
		return err
	}
	switch command := flag.Arg(0); command {
	case "install":
		return plane.Install(ctx)
	case "up":
		if err := plane.Install(ctx); err != nil {
			return err
		}
		return plane.Up(ctx)
	case "run":
		return runIn(ctx, plane, flag.Args()[1:])
	case "down":
		return plane.Down(ctx)
	case "remove":
		return errors.Join(plane.Down(ctx), plane.Remove())
	case "status":
		return status(plane)
	case "os":
		return plane.OpenStack(ctx, os.Stdout, flag.Args()[1:]...)
	case "agent-config":
		if flag.NArg() != 2 && flag.NArg() != 3 {
			return errors.New("agent-config needs a directory, and may have a host")
		}
		text, err := plane.AgentConfig(cmp.Or(flag.Arg(2), plane.Host), flag.Arg(1))
		fmt.Print(text)
		return err
	case "add-host", "remove-host":
		if flag.NArg() != 2 {
			return errors.New(command + " needs a name")
		}
		if command == "remove-host" {
			return plane.RemoveHost(ctx, flag.Arg(1))
		}
		return plane.AddHost(ctx, flag.Arg(1))
	case "key-manager":
		return plane.StartKeyManager(ctx)
	case "peer":
		return plane.StartPeer(ctx)
	default:
		flag.Usage()
		os.Exit(2)
		return nil
	}
}

// runIn runs a command while the control plane is up.
func runIn(ctx context.Context, plane *controlplane.Plane, command []string) (err error) {
	if len(command) == 0 {
		return errors.New("run needs a command")
	}
	if plane.Running() {
		return fmt.Errorf("a control plane is up in %s: end it first", plane.Base)
	}
	if err := plane.Install(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Down(context.WithoutCancel(ctx))) }()
	if err := plane.Up(ctx); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), plane.Environment()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func status(plane *controlplane.Plane) error {
	services, err := plane.Status()
	if err != nil {
		return err
	}
	fmt.Println(plane.Base, plane.Release.Name, plane.Net)
	for _, s := range services {
		state := fmt.Sprintf("pid %d", s.PID)
		if s.PID == 0 {
			state = "not running"
		}
		fmt.Printf("%-24s %s\n", s.Name, state)
	}
	return nil
}
