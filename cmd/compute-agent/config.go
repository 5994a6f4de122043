package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
)

// errFaults ends "config check" with status 1 after the faults were printed.
var errFaults = errors.New("the configuration has faults")

// addConfigFlags adds --config-file and --config-dir, which may be repeated and
// are read in command-line order.
func addConfigFlags(cmd *cobra.Command, s *config.Sources) {
	cmd.Flags().Var(s.FileFlag(), "config-file", "configuration file; may be repeated, later files win")
	cmd.Flags().Var(s.DirFlag(), "config-dir", "directory whose *.conf files are read; may be repeated")
}

// newConfigCommand returns "compute-agent config" with its sub-commands.
func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the configuration or print a sample",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheckCommand(), newConfigSampleCommand())
	return cmd
}

func newConfigCheckCommand() *cobra.Command {
	var sources config.Sources
	var format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read the configuration as the agent does and print what is wrong with it",
		Long: `Read the configuration as the agent does, print every fault and warning as

    file:line: [section] option: message (remedy)

and then what the agent will use. Secrets are never printed. The exit status is
1 when there is a fault, with which the agent would not start.`,
		Example: `  # the default files: nova.conf, nova-compute.conf, compute-agent.conf
  compute-agent config check

  # other files, in the order in which the agent would read them
  compute-agent config check --config-file /etc/nova/nova.conf --config-file ./compute-agent.conf

  # for a program
  compute-agent config check -f json | jq .summary.transport.hosts`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("unknown format %q: use text or json", format)
			}
			sources.Env = os.Environ()
			cmd.SilenceUsage = true
			return checkConfig(cmd.OutOrStdout(), sources, format == "json")
		},
	}
	addConfigFlags(cmd, &sources)
	cmd.Flags().StringVarP(&format, "format", "f", "text", "output format: text or json")
	return cmd
}

// checkResult is the JSON form of "config check".
type checkResult struct {
	Findings []config.Finding `json:"findings"`
	Summary  *config.Summary  `json:"summary"` // null with faults
}

func checkConfig(w io.Writer, sources config.Sources, asJSON bool) error {
	c, report, loadErr := config.Load(sources)
	result := checkResult{Findings: report.Findings}
	if loadErr == nil {
		s, err := c.Summarize(report.Files)
		if err != nil {
			return err
		}
		result.Summary = &s
		if _, fake := c.Default.FakeHost(); !fake {
			result.Findings = append(result.Findings, slices.Concat(checkStorage(c), checkSharing(c), checkShares(c))...)
		}
	}
	if err := result.write(w, asJSON); err != nil {
		return err
	}
	if loadErr != nil {
		return errFaults
	}
	return nil
}

func (r checkResult) write(w io.Writer, asJSON bool) error {
	if asJSON {
		if r.Findings == nil {
			r.Findings = []config.Finding{}
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	for _, f := range r.Findings {
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	if r.Summary == nil {
		return nil
	}
	return r.Summary.Write(w)
}

func newConfigSampleCommand() *cobra.Command {
	var markdown bool
	cmd := &cobra.Command{
		Use:   "sample",
		Short: "Print a configuration file with every option and its default",
		Example: `  compute-agent config sample > /etc/compute-agent/compute-agent.conf
  compute-agent config sample --markdown > docs/options.md`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if markdown {
				return config.WriteDocs(cmd.OutOrStdout())
			}
			return config.WriteSample(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "print the reference of all options instead")
	return cmd
}
