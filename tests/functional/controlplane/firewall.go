package controlplane

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"
)

// Names that neutron's agents give to their chains and sets. Nothing of neutron's own takes them away.
var (
	neutronChain = regexp.MustCompile(`^neutron`)
	neutronRule  = regexp.MustCompile(`\bneutron`)
	neutronSet   = regexp.MustCompile(`^N(IPv4|IPv6)`)
)

// cleanFirewall removes neutron's rules, chains and sets, and nothing else.
func (p *Plane) cleanFirewall(ctx context.Context) error {
	var errs []error
	for _, tool := range []string{"iptables", "ip6tables", "ebtables"} {
		errs = append(errs, p.cleanTables(ctx, tool))
	}
	sets, err := p.Run(ctx, "root", "ipset", "list", "-n")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for set := range strings.FieldsSeq(sets) {
		if neutronSet.MatchString(set) {
			// The kernel may let go of a set some time after the last rule with it.
			errs = append(errs, soon(ctx, func() error {
				_, err := p.Run(ctx, "root", "ipset", "destroy", set)
				return err
			}))
		}
	}
	return errors.Join(errs...)
}

// soon tries something for some seconds.
func soon(ctx context.Context, do func() error) error {
	const tries = 20
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == tries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// cleanTables reads what the tool (iptables, ip6tables, ebtables) saves and undoes neutron's part of it.
func (p *Plane) cleanTables(ctx context.Context, tool string) error {
	saved, err := p.Run(ctx, "root", tool+"-save")
	if err != nil {
		return err
	}
	var table string
	var rules, flush, remove [][]string
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			chain, _, _ := strings.Cut(line[1:], " ")
			if neutronChain.MatchString(chain) {
				flush = append(flush, []string{tool, "-t", table, "-F", chain})
				remove = append(remove, []string{tool, "-t", table, "-X", chain})
			}
		case strings.HasPrefix(line, "-A ") && neutronRule.MatchString(line) && !strings.HasPrefix(line, "-A neutron"):
			rules = append(rules, append([]string{tool, "-t", table, "-D"}, words(line[len("-A "):])...))
		}
	}
	var errs []error
	for _, command := range append(append(rules, flush...), remove...) {
		_, err := p.Run(ctx, "root", command...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// tables lists the tables of the packet filter as the nft tool names them; none on a kernel without nf_tables.
func (p *Plane) tables(ctx context.Context) []string {
	text, err := p.Run(ctx, "root", "nft", "list", "tables")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(text) {
		found = append(found, strings.TrimPrefix(strings.TrimSpace(line), "table "))
	}
	return found
}

// removeTable removes a table that iptables made for neutron, unless there is a rule in it by now that is somebody's.
func (p *Plane) removeTable(ctx context.Context, table string) error {
	args := strings.Fields(table)
	text, err := p.Run(ctx, "root", append([]string{"nft", "list", "table"}, args...)...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && line != "}" && !strings.HasSuffix(line, "{") && !strings.HasPrefix(line, "type ") {
			return nil
		}
	}
	_, err = p.Run(ctx, "root", append([]string{"nft", "delete", "table"}, args...)...)
	return err
}

// words splits a saved rule; a part in double quotes is one word.
func words(rule string) []string {
	var found []string
	for i, part := range strings.Split(rule, `"`) {
		if i%2 == 1 {
			found = append(found, part)
			continue
		}
		found = append(found, strings.Fields(part)...)
	}
	return found
}
