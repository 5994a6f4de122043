package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// parts of a build, as the agent logs them with each "instance spawned".
var parts = []string{"elapsed_ms", "own_ms", "wait_queue_ms", "wait_conductor_ms", "wait_neutron_ms", "wait_plug_ms", "wait_glance_ms"}

// split is the median of each part over the builds in the agent's log, but for the first, which fetches the image.
func (b bench) split() (map[string]time.Duration, error) {
	log, _, err := b.Agent.Log(0)
	if err != nil {
		return nil, err
	}
	seen := map[string][]time.Duration{}
	first := true
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `msg="instance spawned"`) {
			continue
		}
		if first {
			first = false
			continue
		}
		for _, part := range parts {
			if m := regexp.MustCompile(`\b` + part + `=(\d+)`).FindStringSubmatch(line); m != nil {
				ms, err := strconv.Atoi(m[1])
				if err != nil {
					return nil, err
				}
				seen[part] = append(seen[part], time.Duration(ms)*time.Millisecond)
			}
		}
	}
	medians := map[string]time.Duration{}
	for part, values := range seen {
		medians[part] = median(values)
	}
	return medians, nil
}

// printTable has a column for each subject; what was measured of the first alone is in its column.
func printTable(out io.Writer, results []figures, split map[string]time.Duration, c crowd) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(what string, value func(figures) string) {
		fmt.Fprint(w, what)
		for _, f := range results {
			fmt.Fprint(w, "\t", value(f))
		}
		fmt.Fprintln(w)
	}
	row("", func(f figures) string { return f.name })
	row("start to first report", func(f figures) string { return seconds(f.up) })
	row("resident memory, no server", func(f figures) string { return megabytes(f.residentKB) })
	row("create to ACTIVE, median", func(f figures) string { return seconds(median(f.active)) })
	row("create to ACTIVE, worst", func(f figures) string { return seconds(slices.Max(f.active)) })
	row("delete to gone, median", func(f figures) string { return seconds(median(f.gone)) })
	row("conductor calls of a boot", func(f figures) string { return total(f.bootCalls) })
	row("conductor calls of a delete", func(f figures) string { return total(f.deleteCalls) })
	row(fmt.Sprintf("conductor calls in %.0f s of idling", idleFor.Seconds()), func(f figures) string { return total(f.idleCalls) })
	if c.guests > 0 {
		fmt.Fprintf(w, "one busybox server alone: ACTIVE, median\t%s\n", seconds(median(c.single)))
		fmt.Fprintf(w, "%d such servers at once: all ACTIVE\t%s\n", c.guests, seconds(c.active))
		fmt.Fprintf(w, "%d servers: all gone\t%s\n", c.guests, seconds(c.gone))
		fmt.Fprintf(w, "resident memory, %d servers\t%s\n", c.guests, megabytes(c.residentKB))
		fmt.Fprintf(w, "processor time, %d idle servers\t%.2f %% of a core\n", c.guests, 100*c.idle)
	}
	for _, part := range parts {
		if value, ok := split[part]; ok {
			fmt.Fprintf(w, "a build's %s, median\t%d\n", part, value.Milliseconds())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nA fake driver starts nothing and does not wait for its port to be wired; a build's wait_plug_ms is that wait.")
	for _, f := range results {
		if f.bootCalls == nil {
			continue
		}
		printCalls(out, f.name+": what a boot asks of the conductor", f.bootCalls)
		printCalls(out, f.name+": what it asks when idle", f.idleCalls)
	}
	return nil
}

func printCalls(out io.Writer, title string, calls map[string]int) {
	fmt.Fprintf(out, "\n%s\n", title)
	for _, call := range slices.Sorted(maps.Keys(calls)) {
		fmt.Fprintf(out, "  %3d %s\n", calls[call], call)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func megabytes(kb int) string { return fmt.Sprintf("%.0f MiB", float64(kb)/1024) }

func total(calls map[string]int) string {
	if calls == nil {
		return ""
	}
	n := 0
	for _, count := range calls {
		n += count
	}
	return strconv.Itoa(n)
}
