package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// event is one of `go test -json`; see `go doc test2json` and `go help buildjson`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a package that is built
	Test        string // "": the package's own
	Output      string
	Elapsed     float64
	FailedBuild string
}

// result is what a test, or a package by itself, has come to so far.
type result struct {
	pkg, test string
	output    strings.Builder
	failed    bool
	passed    bool // when it was run again
	elapsed   float64
}

// report prints a run and keeps what a digest needs: output is dropped when its test has passed.
type report struct {
	out     io.Writer
	verbose bool

	packages map[string][]*result // in the order in which they began, the package's own among them
	builds   map[string]*strings.Builder
	failed   []*result
	ran      map[string]bool // tests, not their parts
}

func newReport(out io.Writer, verbose bool) *report {
	return &report{out: out, verbose: verbose, packages: map[string][]*result{}, builds: map[string]*strings.Builder{}, ran: map[string]bool{}}
}

// line takes a line of go test's output.
func (r *report) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		r.print(string(line)) // go itself has something to say
		return
	}
	switch e.Action {
	case "build-output":
		b := r.builds[e.ImportPath]
		if b == nil {
			b = &strings.Builder{}
			r.builds[e.ImportPath] = b
		}
		b.WriteString(e.Output)
		r.print(e.Output)
	case "output":
		r.of(e.Package, e.Test).output.WriteString(e.Output)
		if r.verbose {
			r.print(e.Output)
		}
	case "pass", "skip", "fail":
		r.end(e)
	}
}

func (r *report) print(text string) { _, _ = io.WriteString(r.out, text) } // nowhere to tell of it

func (r *report) of(pkg, test string) *result {
	for _, known := range r.packages[pkg] {
		if known.test == test {
			return known
		}
	}
	fresh := &result{pkg: pkg, test: test}
	r.packages[pkg] = append(r.packages[pkg], fresh)
	return fresh
}

func (r *report) end(e event) {
	of := r.of(e.Package, e.Test)
	of.failed, of.elapsed = e.Action == "fail", e.Elapsed
	if e.Test != "" {
		if !strings.Contains(e.Test, "/") {
			r.ran[e.Package+" "+e.Test] = true
		}
		for _, before := range r.failed {
			if before.pkg == e.Package && before.test == e.Test {
				before.passed = !of.failed
			}
		}
		if !of.failed {
			r.packages[e.Package] = slices.DeleteFunc(r.packages[e.Package], func(known *result) bool { return known == of })
		}
		return
	}
	if !r.verbose {
		r.printPackage(of)
	}
	if build := r.builds[e.FailedBuild]; build != nil {
		of.output.WriteString(build.String())
	}
	if of.failed {
		r.fail(r.culprits(e.Package))
	}
	delete(r.packages, e.Package)
}

// fail notes what has failed, each once: what it has to say when it is run again is much the same.
func (r *report) fail(culprits []*result) {
	for _, of := range culprits {
		known := func(before *result) bool { return before.pkg == of.pkg && before.test == of.test }
		if !slices.ContainsFunc(r.failed, known) {
			r.failed = append(r.failed, of)
		}
	}
}

// printPackage prints what go test without -v does of a package.
func (r *report) printPackage(of *result) {
	for _, known := range r.packages[of.pkg] {
		for line := range strings.Lines(known.output.String()) {
			told := strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t")
			if told || of.failed && !strings.HasPrefix(line, "=== ") && line != "PASS\n" {
				r.print(line)
			}
		}
	}
}

// culprits are the results of a package that explain its failure: tests without parts that failed, those that were running when it ended,
// or the package itself.
func (r *report) culprits(pkg string) []*result {
	var found []*result
	for _, known := range r.packages[pkg] {
		part := func(other *result) bool { return strings.HasPrefix(other.test, known.test+"/") }
		if known.test != "" && !slices.ContainsFunc(r.packages[pkg], part) {
			found = append(found, known)
		}
	}
	if len(found) == 0 || !slices.ContainsFunc(found, func(known *result) bool { return known.failed }) {
		found = append(found, r.of(pkg, ""))
	}
	return found
}

// Bounds of the digest: with what make and the harness say behind it, it is less than 60 lines.
const (
	mostLines = 32
	mostOfOne = 14
	mostNames = 12
	widest    = 220
)

// digest prints what has failed, with the first errors.
func (r *report) digest() {
	if len(r.failed) == 0 {
		return
	}
	slices.SortStableFunc(r.failed, func(a, b *result) int { return cmp.Compare(rank(a), rank(b)) })
	fmt.Fprintf(r.out, "\nreport: of %d tests and their packages, %d failed:\n", len(r.ran), len(r.failed))
	left := mostLines
	for i, of := range r.failed {
		if i == mostNames {
			fmt.Fprintf(r.out, "report: and %d more\n", len(r.failed)-i)
			return
		}
		name, later := strings.TrimSpace(of.pkg+" "+of.test), ""
		if of.passed {
			later = ", and passed then"
		}
		fmt.Fprintf(r.out, "--- FAIL: %s (%.1fs)%s\n", name, of.elapsed, later)
		for _, line := range reason(of.output.String()) {
			if left--; left < 0 {
				break
			}
			fmt.Fprintf(r.out, "    %s\n", line)
		}
	}
}

// rank puts first what failed by itself, then what was only running when its package ended, and then what passed in the end.
func rank(of *result) int {
	switch {
	case of.passed:
		return 2
	case of.failed:
		return 0
	}
	return 1
}

// cause is how the errors of testify and of the runtime begin.
var cause = regexp.MustCompile(`^\s*(Error Trace:|panic: |fatal error: |WARNING: DATA RACE|signal: |set up: |tear down: )`)

// frame is a line of the tests' own, such as "=== RUN" and "--- FAIL".
var frame = regexp.MustCompile(`^\s*(=== |--- |FAIL|PASS$|ok  \t|exit status )`)

// reason is what a failed test's output has to say: from its first error on, or the end of it.
func reason(output string) []string {
	var all []string
	first := -1
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		if frame.MatchString(line) || strings.TrimSpace(line) == "" {
			continue
		}
		if first < 0 && cause.MatchString(line) {
			first = len(all)
		}
		line = strings.ReplaceAll(strings.TrimSpace(line), "\t", " ")
		all = append(all, strings.ToValidUTF8(line[:min(len(line), widest)], ""))
	}
	if first >= 0 {
		return all[first:min(len(all), first+mostOfOne)]
	}
	return all[max(0, len(all)-mostOfOne):]
}
