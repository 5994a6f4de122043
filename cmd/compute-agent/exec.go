package main

import (
	"context"
	"fmt"
	"os"
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
output are passed through, and the exit status is the command's. At a terminal the command has one, too, of the same size.`,
		Example: `  compute-agent exec instance-0000002a -- ip address
  compute-agent exec 3f8f5f9e -- sh
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
			status, err := execIn(cmd, d, server.UUID, args[1:])
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

// execIn runs a command with this one's input and output, at a terminal if they are one.
func execIn(cmd *cobra.Command, d driver.Driver, uuid string, args []string) (status int, err error) {
	c := driver.Command{Args: args, Stdin: cmd.InOrStdin(), Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
	in, _ := c.Stdin.(*os.File)
	if in == nil || !isTerminal(in) || !isTerminal(c.Stdout) {
		return d.Exec(cmd.Context(), uuid, c)
	}
	err = onTerminal(in, func(terminal *os.File) error {
		c.Stdin, c.Stdout, c.Terminal, c.Env = terminal, terminal, true, terminalKind(os.Getenv("TERM"))
		if isTerminal(c.Stderr) {
			c.Stderr = terminal
		}
		status, err = d.Exec(cmd.Context(), uuid, c)
		return err
	})
	return status, err
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
