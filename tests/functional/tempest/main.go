// Command tempest runs the compute API tests of OpenStack's Tempest, the distribution's package, against a control plane whose only
// compute hosts are two agents, and prints what passed, what failed, and what was skipped and why.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// secondHost is the compute host besides the one of this machine's name.
const secondHost = "second"

// forTempest goes at the end of the agents' configuration: keys and files reach the servers of the image by the config drive, as there is
// no cloud-init in it that would ask the metadata service; and two hosts of one machine may send servers at the same time.
const forTempest = "[DEFAULT]\nforce_config_drive = true\n\n[lxc]\nmigration_port = 0\n"

type options struct {
	regex       string
	concurrency int
	goOn        bool
	keep        bool
	install     bool
}

func main() {
	var o options
	flag.StringVar(&o.regex, "regex", `^tempest\.api\.compute`, "tests to run")
	flag.IntVar(&o.concurrency, "concurrency", 2, "tests that run at the same time")
	flag.BoolVar(&o.goOn, "continue", false, "leave out what passed in earlier runs, as far as the log tells of them, and add to that log")
	flag.BoolVar(&o.keep, "keep", false, "leave the control plane and the agents up; the next run with "+controlplane.EnvRunning+"=1 uses them")
	flag.BoolVar(&o.install, "install", false, "only install what is missing; for a run where the package mirror is out of reach")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	first, err := lab.New(controlplane.LinuxBridge, "agent-tempest")
	if err != nil {
		return err
	}
	first.Plane.Routers = true
	j := judge{Lab: first, options: o}
	if o.install {
		return j.prepare(ctx)
	}
	if first.Plane.Running() && !lab.Shared() { // what is ended at the end is not to be somebody else's
		return fmt.Errorf("a control plane is up in %s: end it, or set %s=1 if an earlier run with -keep left it", first.Plane.Base, controlplane.EnvRunning)
	}
	defer func() {
		if !o.keep {
			err = errors.Join(err, j.down(context.WithoutCancel(ctx)))
		}
	}()
	if err := j.up(ctx); err != nil {
		return err
	}
	results, err := j.judge(ctx)
	if results != nil { // of a run that was cut short, too
		results.print(os.Stdout)
	}
	if err != nil {
		return err
	}
	if failed, notRun := len(results.failed), len(results.notRun()); failed+notRun > 0 {
		return fmt.Errorf("%d failed, %d not run; all that Tempest wrote is in %s", failed, notRun, j.logFile())
	}
	return nil
}

// judge is a control plane with two agents and Tempest.
type judge struct {
	*lab.Lab
	options

	second  *lab.Lab
	guestFS *guestFS
	source  string // the commit of the agents
}

// up installs what is missing and starts everything.
func (j *judge) up(ctx context.Context) error {
	if err := j.prepare(ctx); err != nil {
		return err
	}
	if err := j.UpForTests(ctx); err != nil {
		return err
	}
	left, err := j.removeRouters(ctx)
	if err != nil {
		return err
	}
	if left > 0 && !lab.Shared() {
		j.Plane.Say("starting anew without %d routers of a run that was killed", left)
		if err := j.Plane.Down(ctx); err != nil {
			return err
		}
		if err := j.UpForTests(ctx); err != nil {
			return err
		}
	}
	if j.guestFS, err = mountGuestFS(ctx, j.Plane); err != nil {
		return err
	}
	j.Plane.Say("building and starting two agents")
	if j.second, err = j.Neighbour(ctx, secondHost); err != nil {
		return err
	}
	j.source = source(ctx)
	if err := j.Agent.Build(ctx); err != nil {
		return err
	}
	for _, l := range []*lab.Lab{j.Lab, j.second} {
		l.AgentOptions = forTempest
		if err := l.Agent.Signal(ctx, syscall.SIGTERM); err != nil { // of a run that kept it: it is not of the program just built
			return err
		}
		if err := l.StartAgent(ctx); err != nil {
			return err
		}
	}
	return nil
}

// prepare installs what is missing.
func (j *judge) prepare(ctx context.Context) error {
	if err := j.Plane.Install(ctx); err != nil {
		return err
	}
	if err := j.Plane.AddPackages(ctx, controlplane.RouterPackage, controlplane.SSHImagePackage, "tempest"); err != nil {
		return err
	}
	_, err := j.Plane.SSHImage(ctx)
	return err
}

// down ends everything that up started.
func (j *judge) down(ctx context.Context) error {
	var errs []error
	if j.Plane.Running() && j.Agent.PID() != 0 {
		j.Plane.Say("deleting servers")
		errs = append(errs, j.DeleteServers(ctx))
		_, err := j.removeRouters(ctx)
		errs = append(errs, err)
	}
	errs = append(errs, j.StopAgent(ctx))
	if j.second != nil {
		errs = append(errs, j.second.StopAgent(ctx))
	}
	errs = append(errs, j.guestFS.unmount(ctx))
	if !lab.Shared() {
		errs = append(errs, j.Plane.Down(ctx))
	}
	return errors.Join(errs...)
}
