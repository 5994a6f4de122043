package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// What Tempest says of a test.
const (
	passed  = "ok"
	skipped = "SKIPPED"
)

// outcome of a test, or of what its class does before the first test or after the last.
type outcome struct {
	name    string // of the test; of the class for what concerns all of it
	outcome string
	seconds string
	reason  string
}

func (o outcome) String() string {
	text := o.outcome + " " + o.name
	if o.seconds != "" {
		text += " (" + o.seconds + "s)"
	}
	if o.reason != "" {
		text += ": " + o.reason
	}
	return text
}

// line is one of Tempest's results: `{0} tempest.api.compute.x.Class.test_y[id-…,smoke] [0.5s] ... ok`,
// `{1} setUpClass (tempest.api.compute.x.Class) ... SKIPPED: why`.
var line = regexp.MustCompile(`^\{\d+\} (?:(\w+Class) \(([\w.]+)\)|([\w.]+)(?:\[[^]]*\])?)(?: \[([\d.]+)s\])? \.\.\. (\w+)(?:: (.*))?$`)

func parse(text string) (outcome, bool) {
	found := line.FindStringSubmatch(strings.TrimRight(text, "\r "))
	if found == nil {
		return outcome{}, false
	}
	o := outcome{name: found[3], outcome: found[5], seconds: found[4], reason: found[6]}
	if found[1] != "" {
		o.name = found[2]
		if o.outcome != skipped {
			o.name += "." + found[1]
		}
	}
	return o, true
}

// results of a run. A test of tests that is in none of the others was not run.
type results struct {
	tests   []string
	ids     map[string]string // of the tests, as Tempest wants them: with their attributes
	passed  []string
	failed  []string            // tests, and methods of classes
	skipped map[string][]string // by reason
	done    map[string]bool
	earlier map[string]int // how many of the passed did so in an earlier run, by what that run was of
}

// newResults reads the list of tests.
func newResults(list []string) *results {
	r := &results{ids: map[string]string{}, skipped: map[string][]string{}, done: map[string]bool{}, earlier: map[string]int{}}
	for _, id := range list {
		id = strings.TrimSpace(id)
		name, _, _ := strings.Cut(id, "[")
		if strings.HasPrefix(name, "tempest.") {
			r.tests = append(r.tests, name)
			r.ids[name] = id
		}
	}
	slices.Sort(r.tests)
	return r
}

func (r *results) add(o outcome) {
	names := []string{o.name}
	if o.outcome == skipped && !slices.Contains(r.tests, o.name) {
		names = r.of(o.name)
	}
	for _, name := range names {
		r.done[name] = true
	}
	switch o.outcome {
	case passed:
		r.passed = append(r.passed, o.name)
	case skipped:
		r.skipped[o.reason] = append(r.skipped[o.reason], names...)
	default:
		r.failed = append(r.failed, o.name)
	}
}

// of lists the tests of a class.
func (r *results) of(class string) []string {
	var tests []string
	for _, test := range r.tests {
		if rest, ok := strings.CutPrefix(test, class+"."); ok && !strings.Contains(rest, ".") {
			tests = append(tests, test)
		}
	}
	return tests
}

// ended counts the tests that have a result.
func (r *results) ended() int {
	n := 0
	for _, test := range r.tests {
		if r.done[test] {
			n++
		}
	}
	return n
}

// notRun are the tests without a result: their class failed before them.
func (r *results) notRun() []string {
	return slices.DeleteFunc(slices.Clone(r.tests), func(test string) bool { return r.done[test] })
}

// left are the ids of the tests without a result.
func (r *results) left() []string {
	var ids []string
	for _, test := range r.notRun() {
		ids = append(ids, r.ids[test])
	}
	return ids
}

func (r *results) print(out io.Writer) {
	count := 0
	for _, tests := range r.skipped {
		count += len(tests)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer func() { _ = table.Flush() }() // a report to a terminal
	fmt.Fprintf(table, "\npassed\t%d\nfailed\t%d\nnot run\t%d\nskipped\t%d\n", len(r.passed), len(r.failed), len(r.notRun()), count)
	for _, at := range slices.Sorted(maps.Keys(r.earlier)) {
		fmt.Fprintf(table, "passed earlier, %s\t%d\n", at, r.earlier[at])
	}
	section := func(title string, tests []string) {
		if len(tests) == 0 {
			return
		}
		fmt.Fprintf(table, "\n%s\n", title)
		for _, test := range slices.Sorted(slices.Values(tests)) {
			fmt.Fprintf(table, "  %s\n", strings.TrimPrefix(test, "tempest.api.compute."))
		}
	}
	section("failed", r.failed)
	section("not run", r.notRun())
	for _, reason := range slices.Sorted(maps.Keys(r.skipped)) {
		section(fmt.Sprintf("skipped (%d): %s", len(r.skipped[reason]), reason), r.skipped[reason])
	}
	for _, e := range excluded {
		fmt.Fprintf(table, "\nleft out: %s\n  %s\n", e.reason, e.pattern)
	}
}

// exclusion is a test that Tempest would run and that cannot pass here.
type exclusion struct{ pattern, reason string }

const noXen = "of the XenAPI driver: Nova has no such API any more"

var excluded = []exclusion{
	{
		`ServersWithSpecificFlavorTestJSON\.test_verify_created_server_ephemeral_disk`,
		"counts the guest's block devices: a container has none, its ephemeral disks are mounted file systems",
	},
	{`admin\.test_agents\.`, noXen},
	{`ServersAdminTestJSON\.test_reset_network_inject_network_info`, noXen},
}
