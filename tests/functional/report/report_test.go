package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// told is what a report prints of events.
func told(t *testing.T, verbose bool, events ...event) string {
	t.Helper()
	var out strings.Builder
	r := newReport(&out, verbose)
	for _, e := range events {
		line, err := json.Marshal(e)
		require.NoError(t, err)
		r.line(append(line, '\n'))
	}
	r.digest()
	return out.String()
}

func output(pkg, test, text string) event {
	return event{Action: "output", Package: pkg, Test: test, Output: text}
}

func end(action, pkg, test string) event { return event{Action: action, Package: pkg, Test: test} }

// failing is a run with a package that passes behind one that does not.
var failing = []event{
	output("p/a", "TestGood", "=== RUN   TestGood\n"), output("p/a", "TestGood", "    a_test.go:1: fine\n"), end("pass", "p/a", "TestGood"),
	output("p/a", "TestBad", "=== RUN   TestBad\n"), output("p/a", "TestBad", "    a_test.go:2: a log line\n"),
	output("p/a", "TestBad/part", "    a_test.go:3: \n"), output("p/a", "TestBad/part", "        \tError Trace:\t/src/a_test.go:3\n"),
	output("p/a", "TestBad/part", "        \tError:      \tReceived unexpected error:\n"),
	output("p/a", "TestBad/part", "        \t            \twait for answer to ping\n"), output("p/a", "TestBad/part", "    --- FAIL: TestBad/part (1.00s)\n"),
	end("fail", "p/a", "TestBad/part"), output("p/a", "TestBad", "--- FAIL: TestBad (1.00s)\n"), end("fail", "p/a", "TestBad"),
	output("p/a", "", "FAIL\n"), output("p/a", "", "FAIL\tp/a\t1.0s\n"), end("fail", "p/a", ""),
	output("p/b", "TestOther", "=== RUN   TestOther\n"), end("pass", "p/b", "TestOther"),
	output("p/b", "", "PASS\n"), output("p/b", "", "ok  \tp/b\t0.1s\n"), end("pass", "p/b", ""),
}

func TestDigestIsTheEnd(t *testing.T) {
	t.Parallel()
	const digest = `
report: of 3 tests and their packages, 1 failed:
--- FAIL: p/a TestBad/part (0.0s)
    Error Trace: /src/a_test.go:3
    Error:       Received unexpected error:
    wait for answer to ping
`
	quiet, verbose := told(t, false, failing...), told(t, true, failing...)
	require.True(t, strings.HasSuffix(quiet, "ok  \tp/b\t0.1s\n"+digest), quiet)
	require.True(t, strings.HasSuffix(verbose, "ok  \tp/b\t0.1s\n"+digest), verbose)
	require.NotContains(t, quiet, "fine")
	require.NotContains(t, quiet, "=== RUN")
	require.NotContains(t, quiet, "PASS")
	require.Contains(t, quiet, "    a_test.go:2: a log line\n--- FAIL: TestBad (1.00s)\n")
	require.Contains(t, verbose, "=== RUN   TestGood\n    a_test.go:1: fine\n")
}

func TestNothingFailed(t *testing.T) {
	t.Parallel()
	require.Equal(t, "?   \tp/c\t[no test files]\nok  \tp/b\t0.1s\n", told(t, false,
		output("p/c", "", "?   \tp/c\t[no test files]\n"), end("skip", "p/c", ""),
		output("p/b", "TestOther", "=== RUN   TestOther\n"), end("pass", "p/b", "TestOther"),
		output("p/b", "", "PASS\n"), output("p/b", "", "ok  \tp/b\t0.1s\n"), end("pass", "p/b", ""),
	))
}

// TestNoTestFailed: the package did not build, its process was killed, or its time was over.
func TestNoTestFailed(t *testing.T) {
	t.Parallel()
	text := told(t, false,
		event{Action: "build-output", ImportPath: "p/a [p/a.test]", Output: "# p/a [p/a.test]\n"},
		event{Action: "build-output", ImportPath: "p/a [p/a.test]", Output: "./a_test.go:7:2: undefined: x\n"},
		event{Action: "build-fail", ImportPath: "p/a [p/a.test]"},
		output("p/a", "", "FAIL\tp/a [build failed]\n"), event{Action: "fail", Package: "p/a", FailedBuild: "p/a [p/a.test]"},
	)
	require.Contains(t, text, "--- FAIL: p/a (0.0s)\n    # p/a [p/a.test]\n    ./a_test.go:7:2: undefined: x\n")

	text = told(t, true,
		output("p/a", "TestSlow", "=== RUN   TestSlow\n"), output("p/a", "TestSlow", "    a_test.go:9: goes on\n"),
		output("p/a", "", "signal: killed\n"), output("p/a", "", "FAIL\tp/a\t9.0s\n"), end("fail", "p/a", ""),
	)
	require.Contains(t, text, "--- FAIL: p/a (0.0s)\n    signal: killed\n--- FAIL: p/a TestSlow (0.0s)\n    a_test.go:9: goes on\n")

	text = told(t, true,
		output("p/a", "TestSlow", "=== RUN   TestSlow\n"), output("p/a", "TestSlow", "panic: test timed out after 1h0m0s\n"),
		output("p/a", "TestSlow", "\trunning tests:\n"), output("p/a", "TestSlow", "\t\tTestSlow (59m0s)\n"), end("fail", "p/a", "TestSlow"),
		output("p/a", "", "FAIL\tp/a\t3600s\n"), end("fail", "p/a", ""),
	)
	require.True(t, strings.HasSuffix(text, "--- FAIL: p/a TestSlow (0.0s)\n    panic: test timed out after 1h0m0s\n    running tests:\n    TestSlow (59m0s)\n"), text)
}

// TestRunAgain: what passed then is told of, too.
func TestRunAgain(t *testing.T) {
	t.Parallel()
	first := []event{
		output("p/a", "TestOnce", "    a_test.go:1: no luck\n"), end("fail", "p/a", "TestOnce"),
		output("p/a", "TestBad", "    a_test.go:2: bad\n"), end("fail", "p/a", "TestBad"), end("fail", "p/a", ""),
	}
	again := []event{
		end("pass", "p/a", "TestOnce"), output("p/a", "TestBad", "    a_test.go:2: as bad\n"), end("fail", "p/a", "TestBad"), end("fail", "p/a", ""),
	}
	require.True(t, strings.HasSuffix(told(t, true, append(first, again...)...), `
report: of 2 tests and their packages, 2 failed:
--- FAIL: p/a TestBad (0.0s)
    a_test.go:2: bad
--- FAIL: p/a TestOnce (0.0s), and passed then
    a_test.go:1: no luck
`))
}

// TestDigestIsShort: it does not push itself off the screen.
func TestDigestIsShort(t *testing.T) {
	t.Parallel()
	var events []event
	for n := range 50 {
		name := fmt.Sprintf("Test%d", n)
		for range 30 {
			events = append(events, output("p/a", name, "    "+strings.Repeat("é", 1000)+"\n"))
		}
		events = append(events, end("fail", "p/a", name))
	}
	text := told(t, true, append(events, end("fail", "p/a", ""))...)
	_, digest, found := strings.Cut(text, "\nreport: of 50 tests and their packages, 50 failed:\n")
	require.True(t, found)
	require.LessOrEqual(t, strings.Count(digest, "\n"), mostLines+mostNames+1)
	require.Contains(t, digest, "report: and 38 more\n")
}

// TestOtherLines are go's own.
func TestOtherLines(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	r := newReport(&out, false)
	r.line([]byte("go: downloading x v1\n"))
	r.digest()
	require.Equal(t, "go: downloading x v1\n", out.String())
}
