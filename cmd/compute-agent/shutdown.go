package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/control"
)

// parallelShutdowns is how many guests are shut down at once: each is looked at a hundred times a second
// until it is down.
const parallelShutdowns = 64

// newShutdownCommand returns "compute-agent shutdown".
func newShutdownCommand() *cobra.Command {
	var sources config.Sources
	cmd := &cobra.Command{
		Use:   "shutdown",
		Short: "Shut down the servers of this node, before the node itself",
		Long: `Shut down the servers of this node, before the node itself: all at once, each with the time that
[DEFAULT] shutdown_timeout or its image gives it; one that still runs then is killed.

The agent must be stopped: nova does not hear of it, and with [DEFAULT] resume_guests_state_on_host_boot the
agent starts the servers again when the node is back. compute-agent-guests.service calls this.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := config.Load(sources)
			if err != nil {
				return err
			}
			if err := noAgentRuns(cmd.Context(), controlSocket(c)); err != nil {
				return err
			}
			d, err := openGuests(c)
			if errors.Is(err, errFake) {
				return nil // the node may go
			}
			if err != nil {
				return err
			}
			return shutDownGuests(cmd.Context(), d, c.Default.ShutdownTimeout, cmd.OutOrStdout())
		},
	}
	addConfigFlags(cmd, &sources)
	return cmd
}

// noAgentRuns makes sure that nobody takes the end of the guests for the wish of their owners.
func noAgentRuns(ctx context.Context, socket string) error {
	conn, err := control.Dial(ctx, socket)
	if err == nil {
		_ = conn.Close()
		return errors.New("the agent runs and would have nova stop the servers for good: stop it first (systemctl stop compute-agent)")
	}
	if !isNoAgent(err) {
		return err
	}
	return nil
}

// shutDownGuests ends all guests that run. One that cannot be ended does not keep the others.
func shutDownGuests(ctx context.Context, d driver.Driver, timeout time.Duration, out io.Writer) error {
	specs, err := d.List(ctx)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(parallelShutdowns)
	var mu sync.Mutex // guards out and errs
	var errs []error
	for _, spec := range specs {
		g.Go(func() error {
			line, err := shutDownGuest(ctx, d, spec, timeout)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			}
			if line != "" {
				_, _ = fmt.Fprintln(out, line) // the guests matter more than who reads of them
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	return errors.Join(errs...)
}

// shutDownGuest ends one guest and says what it took; "": it did not run.
func shutDownGuest(ctx context.Context, d driver.Driver, spec driver.Spec, timeout time.Duration) (string, error) {
	info, err := d.Info(ctx, spec.UUID)
	if err != nil {
		return "", err
	}
	if info.PowerState == driver.PowerStateShutdown {
		return "", nil
	}
	if spec.ShutdownTimeout > 0 {
		timeout = spec.ShutdownTimeout
	}
	begin := time.Now()
	how := "killed"
	if timeout > 0 {
		halted, err := d.Shutdown(ctx, spec.UUID, timeout)
		switch {
		case err != nil:
			how = fmt.Sprintf("killed (%v)", err)
		case halted:
			how = "shut down"
		}
	}
	if err := d.Stop(ctx, spec.UUID, 0, 0); err != nil { // takes away what a clean end leaves as well
		return "", err
	}
	return fmt.Sprintf("%s %s: %s after %.1f s", spec.Name, spec.UUID, how, time.Since(begin).Seconds()), nil
}
