package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver"
)

// newExecCommand returns "compute-agent exec".
func newExecCommand() *cobra.Command {
	var sources config.Sources
	cmd := &cobra.Command{
		Use:   "exec [flags] SERVER -- COMMAND [ARGUMENT...]",
		Short: "Run a command inside a server of this node",
		Long: `Run a command inside a server of this node, as the guest's root and with a clean
environment. SERVER is the server's UUID, its beginning, or its instance name. Standard input and
output are passed through, and the exit status is the command's.`,
		Example: `  compute-agent exec instance-0000002a -- ip address
  echo secret | compute-agent exec 3f8f5f9e -- sh -c 'cat > /root/file'`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := config.Load(sources)
			if err != nil {
				return err
			}
			d, err := openGuests(c)
			if err != nil {
				return err
			}
			server, err := findServer(cmd.Context(), d, args[0])
			if err != nil {
				return err
			}
			status, err := d.Exec(cmd.Context(), server.UUID, driver.Command{
				Args: args[1:], Stdin: cmd.InOrStdin(), Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr(),
			})
			if err != nil {
				return err
			}
			if status != 0 {
				return exitStatus(status)
			}
			return nil
		},
	}
	addConfigFlags(cmd, &sources)
	return cmd
}

// findServer finds the one server of this node that a word names.
func findServer(ctx context.Context, d driver.Driver, word string) (driver.Spec, error) {
	specs, err := d.List(ctx)
	if err != nil {
		return driver.Spec{}, err
	}
	var found []driver.Spec
	for _, s := range specs {
		if s.UUID == word || s.Name == word {
			return s, nil
		}
		if len(word) >= 4 && strings.HasPrefix(s.UUID, word) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return driver.Spec{}, fmt.Errorf("no server %q on this node; openstack server list --all-projects --host %s shows them", word, "<this host>")
	}
	return driver.Spec{}, fmt.Errorf("%d servers on this node begin with %q; give more of the UUID", len(found), word)
}
