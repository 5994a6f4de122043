// Command compute-agent stands in the place of nova-compute on a hypervisor node
// and runs system containers through liblxc.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver/lxc"
)

// version is set by the linker.
var version = "development"

func main() {
	// The hidden sub-commands come first: liblxc forks there, and the process must
	// not have become more than it needs to be.
	if handled, code := lxc.ChildMain(os.Args[1:]); handled {
		os.Exit(code)
	}
	os.Exit(run())
}

// run is the program up to its exit status.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := newRootCommand().ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errFaults), errors.Is(err, errUnfit):
		return 1
	default:
		fmt.Fprintln(os.Stderr, "compute-agent:", err)
		return 1
	}
}

// newRootCommand returns the program: without a sub-command it is the agent.
func newRootCommand() *cobra.Command {
	var sources config.Sources
	cmd := &cobra.Command{
		Use:   "compute-agent",
		Short: "Run OpenStack servers as Linux containers on this node, in place of nova-compute",
		Long: `Run OpenStack servers as Linux containers on this node, in place of nova-compute.

Without a sub-command compute-agent is the service: it reads nova.conf, registers this
host with the control plane and carries out what nova asks. It runs in the foreground
until SIGTERM; the containers outlive it.`,
		Example: `  # the service, with nova's own files
  compute-agent

  # the service, with these files only, later ones win
  compute-agent --config-file /etc/nova/nova.conf --config-file /etc/compute-agent/compute-agent.conf

  # what is wrong with the configuration
  compute-agent config check

  # a command inside a server of this node
  compute-agent exec 3f8f5f9e-9b3c-4d8e-8d57-0d5c4f1c2a11 -- ip address`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAgent(cmd.Context(), sources)
		},
	}
	addConfigFlags(cmd, &sources)
	cmd.AddCommand(newConfigCommand(), newDoctorCommand(), newExecCommand(), newFileCommand(), newGCCommand(), newImageCommand(), newShutdownCommand(), newVersionCommand())
	return cmd
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the program's version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "compute-agent", version)
			return err
		},
	}
}

// exitStatus is the status of a command inside a guest, passed on as our own.
type exitStatus int

// Error implements error.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }
