package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver/lxc"
	"github.com/compute-agent/compute-agent/vif/ovs"
)

// dialTimeout is how long a local server may take to accept a connection.
const dialTimeout = 2 * time.Second

// errUnfit ends "doctor" with status 1 after the table was printed.
var errUnfit = errors.New("this node cannot run servers as it is")

// Results of an examination, from good to bad.
const (
	resultOK      = "ok"
	resultWarning = "warning"
	resultFailed  = "failed"
)

// examination is one line of "doctor", and an element of its JSON form.
type examination struct {
	Check    string   `json:"check"`
	Result   string   `json:"result"` // ok, warning or failed
	Problems []remedy `json:"problems"`
}

// remedy is a problem and what an operator can do about it.
type remedy struct {
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
}

// add counts a problem; fatal ones keep servers from running.
func (e *examination) add(fatal bool, what, todo string) {
	switch {
	case fatal:
		e.Result = resultFailed
	case e.Result == resultOK:
		e.Result = resultWarning
	}
	e.Problems = append(e.Problems, remedy{what, todo})
}

func examine(check string) examination {
	return examination{Check: check, Result: resultOK, Problems: []remedy{}}
}

// newDoctorCommand returns "compute-agent doctor".
func newDoctorCommand() *cobra.Command {
	var sources config.Sources
	var format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether this node can run servers, and say what to do where it cannot",
		Long: `Look whether this node can run servers: its configuration, kernel, control groups, ids, confinement, storage and
switches, as the agent does at its start. The agent may run meanwhile. Nothing is changed, but for the agent's own
directories, which are made where they are missing.

"failed" is what keeps the agent from starting or servers from running, "warning" what it can do without. The exit
status is 1 when something failed.`,
		Example: `  compute-agent doctor

  # with the files that the service reads
  compute-agent doctor --config-file /etc/nova/nova.conf --config-file /etc/compute-agent/compute-agent.conf

  # for a program: what failed
  compute-agent doctor -f json | jq '.[] | select(.result == "failed")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("unknown format %q: use text or json", format)
			}
			sources.Env = os.Environ()
			found := examineNode(cmd.Context(), sources)
			if err := writeExaminations(cmd.OutOrStdout(), found, format == "json"); err != nil {
				return err
			}
			for _, e := range found {
				if e.Result == resultFailed {
					return errUnfit
				}
			}
			return nil
		},
	}
	addConfigFlags(cmd, &sources)
	cmd.Flags().StringVarP(&format, "format", "f", "text", "output format: text or json")
	return cmd
}

// examineNode looks at everything; without a configuration there is nothing to go by.
func examineNode(ctx context.Context, sources config.Sources) []examination {
	c, report, err := config.Load(sources)
	settings := examine("configuration")
	for _, f := range report.Findings {
		settings.add(f.Fault, f.String(), "")
	}
	if err != nil {
		if settings.Result != resultFailed {
			settings.add(true, err.Error(), "")
		}
		return []examination{settings}
	}
	if fake, ok := c.Default.FakeHost(); ok {
		e := examine("containers")
		e.add(false, fake.Driver+" starts none, and needs nothing of this node", "remove [DEFAULT] compute_driver where servers are to run")
		return []examination{settings, e}
	}
	found := append([]examination{settings}, examineGuests(ctx, c)...)
	return append(found, examineStorage(c), examineSwitch(ctx, ovs.Endpoints(c.OSVIFOVS.OVSDBConnection)))
}

// examineGuests is what the driver of the guests says of the host.
func examineGuests(ctx context.Context, c *config.Config) []examination {
	d, err := openDriver(c)
	if err != nil {
		e := examine("containers")
		e.add(true, err.Error(), "")
		return []examination{e}
	}
	var found []examination
	for _, check := range d.Checks(ctx) {
		e := examine(check.Name)
		for _, p := range check.Problems {
			e.add(p.Fatal, p.What, p.Remedy)
		}
		found = append(found, e)
	}
	return found
}

func openDriver(c *config.Config) (*lxc.Driver, error) {
	options := driverOptions(c)
	var err error
	if options.IDPool, err = idPool(c); err != nil {
		return nil, err
	}
	return lxc.New(options)
}

func examineStorage(c *config.Config) examination {
	e := examine("storage (" + c.LXC.StorageBackend + ")")
	for _, f := range checkStorage(c) {
		e.add(true, f.Message, f.Remedy)
	}
	for _, f := range checkSharing(c) {
		e.add(false, f.Message, f.Remedy)
	}
	return e
}

// examineSwitch connects to Open vSwitch's database. A node of Linux bridges has none.
func examineSwitch(ctx context.Context, endpoints []string) examination {
	e := examine("Open vSwitch")
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var errs []string
	for _, endpoint := range endpoints {
		network, address, _ := strings.Cut(endpoint, ":")
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			_ = conn.Close()
			return e
		}
		errs = append(errs, err.Error())
	}
	e.add(false, "no database answers, so ports of Open vSwitch cannot be plugged: "+strings.Join(errs, "; "),
		"nothing where Neutron uses Linux bridges; else start openvswitch-switch, or correct [os_vif_ovs] ovsdb_connection")
	return e
}

func writeExaminations(w io.Writer, found []examination, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(found)
	}
	for _, e := range found {
		if _, err := fmt.Fprintf(w, "%-8s %s\n", e.Result, e.Check); err != nil {
			return err
		}
		for _, p := range e.Problems {
			text := "         " + p.What + "\n"
			if p.Remedy != "" {
				text += "         -> " + p.Remedy + "\n"
			}
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
		}
	}
	return nil
}
