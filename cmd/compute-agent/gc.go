package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/control"
)

// newGCCommand returns "compute-agent gc".
func newGCCommand() *cobra.Command {
	var flags outputFlags
	var dry bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Find and remove what lies on this node without a server",
		Long: `Find and remove what lies on this node without a server: containers, root and ephemeral disks, wired ports, id ranges, uses
of images, and the records of them. The agent asks nova about each: what is of a deleted server, or of one whose build
failed, is removed. What nova has on another host, or does not know at all, is told and left alone.

The agent does the same by itself when it starts and every running_deleted_instance_poll_interval. It has to run: nobody
else can tell what is about to be used.

This command alone also looks for network devices and ports of Open vSwitch that bear a server's UUID and are in no record
of the agent's, as after its database was lost or restored. They may be of another compute service on the same machine:
only a deleted server's are removed, and only while no guest uses them.`,
		Example: `  compute-agent gc --dry-run
  compute-agent gc -f json | jq -r '.[] | select(.removed) | .instance'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(); err != nil {
				return err
			}
			c, _, err := config.Load(flags.sources)
			if err != nil {
				return err
			}
			client, err := control.Connect(cmd.Context(), controlSocket(c))
			if isNoAgent(err) {
				return fmt.Errorf("%w; only the agent can ask nova what belongs here: systemctl start compute-agent", err)
			}
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // every answer has been read
			found, err := client.Leftovers(cmd.Context(), dry)
			if err != nil {
				return err
			}
			if err := flags.write(cmd.OutOrStdout(), found, func(t *table) { t.leftovers(found) }); err != nil {
				return err
			}
			return failedLeftovers(found)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be removed")
	return cmd
}

// failedLeftovers is the command's error when not all could be judged or removed.
func failedLeftovers(found []control.Leftover) error {
	failed := 0
	for _, l := range found {
		if l.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%s not dealt with; the agent's log says more", count(failed, "leftover"))
	}
	return nil
}

func (t *table) leftovers(found []control.Leftover) {
	if len(found) == 0 {
		_, _ = fmt.Fprintln(t.w, "nothing lies on this node without a server")
		return
	}
	t.row("INSTANCE", "RESULT", "WHY", "WHAT THERE IS")
	for _, l := range found {
		result, why := "kept", l.Why
		switch {
		case l.Error != "":
			result, why = "failed", l.Error
		case l.Removed:
			result = "removed"
		case l.Removable:
			result = "would be removed"
		}
		t.row(l.Instance, result, why, strings.Join(l.Has, ", "))
	}
}
