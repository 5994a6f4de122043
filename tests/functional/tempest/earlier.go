package main

import (
	"bufio"
	"io"
	"strings"
)

// runOf begins the line of the log that tells what a run is of.
const runOf = "# run of "

// unknownCommit is what a run is of where git cannot tell.
const unknownCommit = "an unknown commit"

// linesOf reads what Tempest writes: a line of a traceback may carry a whole answer of an API.
func linesOf(in io.Reader) *bufio.Scanner {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	return lines
}

// keep takes over what passed in earlier runs, whose log it reads. The last result of a test counts. What was skipped is asked for again: it
// takes no time, and the configuration may have changed. So are all tests of a class that failed after its last one.
func (r *results) keep(log io.Reader) error {
	at := unknownCommit
	sources := map[string]string{}
	lines := linesOf(log)
	for lines.Scan() {
		if source, ok := strings.CutPrefix(lines.Text(), runOf); ok {
			at = source
			continue
		}
		o, ok := parse(lines.Text())
		switch {
		case !ok:
		case o.outcome == passed:
			sources[o.name] = at
		default:
			delete(sources, o.name)
			for _, test := range r.of(strings.TrimSuffix(o.name, ".tearDownClass")) { // none, if the result is one test's
				delete(sources, test)
			}
		}
	}
	for _, test := range r.tests {
		if source, ok := sources[test]; ok {
			r.add(outcome{name: test, outcome: passed})
			r.earlier[source]++
		}
	}
	return lines.Err()
}
