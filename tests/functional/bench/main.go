// Command bench measures compute-agent, as it is and with its fake driver, beside the distribution's nova-compute with its own fake
// driver on one control plane, and prints a table. The two that start nothing are like for like.
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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	net := flag.String("net", controlplane.LinuxBridge, "linuxbridge or ovs")
	boots := flag.Int("boots", 10, "servers booted one after the other on each host")
	guests := flag.Int("guests", 50, "servers booted at once on the agent's host")
	rounds := flag.Int("rounds", 10, "runs of each operation on a server")
	flag.Parse()
	l, err := lab.New(*net, "agent-bench")
	if err != nil {
		return err
	}
	if err := l.Agent.Build(ctx); err != nil {
		return err
	}
	if err := l.UpForTests(ctx); err != nil {
		return err
	}
	// The fake driver does not wait for its port to be wired: an agent that is configured not to, either, is beside it.
	hasty, err := l.Neighbour(ctx, "hasty")
	idle, idleErr := l.Fake(ctx, "fake")
	err = errors.Join(err, idleErr)
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, l.DeleteServers(ctx), l.StopAgent(ctx), hasty.StopAgent(ctx), idle.StopAgent(ctx), l.Plane.StopPeer(ctx),
			l.Plane.RemoveHost(ctx, hasty.Host), l.Plane.RemoveHost(ctx, idle.Host))
		if !lab.Shared() {
			err = errors.Join(err, l.Plane.Down(ctx))
		}
	}()
	if err != nil {
		return err
	}
	hasty.AgentOptions = "[DEFAULT]\nvif_plugging_timeout = 0\nvif_plugging_is_fatal = false\nshutdown_timeout = 0\n"
	b := bench{Lab: l}
	agent, impatient := agentSubject{l, "compute-agent"}, agentSubject{hasty, "compute-agent, not waiting for the port"}
	fake, peer := agentSubject{idle, "compute-agent, fake driver"}, peerSubject{l}
	// All under the same load of the machine: they take turns.
	results, err := b.latencies(ctx, *boots, agent, impatient, fake, peer)
	if err != nil {
		return err
	}
	split, err := b.split()
	if err != nil {
		return err
	}
	times, err := operationTimes(ctx, hasty, *rounds)
	if err != nil {
		return err
	}
	images, err := snapshotTimes(ctx, hasty, max(1, *rounds/3))
	if err != nil {
		return err
	}
	// Each alone, so that what is seen on the bus is its own.
	if err := errors.Join(peer.stop(ctx), fake.stop(ctx), impatient.stop(ctx)); err != nil {
		return err
	}
	if err := b.messages(ctx, agent, &results[0]); err != nil {
		return err
	}
	crowd, err := b.crowd(ctx, *guests)
	if err != nil {
		return err
	}
	if err := agent.stop(ctx); err != nil {
		return err
	}
	for i, s := range []subject{fake, peer} {
		if err := s.start(ctx); err != nil {
			return err
		}
		if err := errors.Join(b.messages(ctx, s, &results[2+i]), s.stop(ctx)); err != nil {
			return err
		}
	}
	return errors.Join(printTable(os.Stdout, results, split, crowd), printOperations(os.Stdout, times, images))
}
