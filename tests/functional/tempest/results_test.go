package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]outcome{
		"{0} tempest.api.compute.x.Class.test_y[id-1,smoke] [0.510s] ... ok":    {name: "tempest.api.compute.x.Class.test_y", outcome: "ok", seconds: "0.510"},
		"{1} tempest.api.compute.x.Class.test_y [12.0s] ... FAILED":             {name: "tempest.api.compute.x.Class.test_y", outcome: "FAILED", seconds: "12.0"},
		"{1} tempest.api.compute.x.Class.test_y[id-1] ... SKIPPED: No: volumes": {name: "tempest.api.compute.x.Class.test_y", outcome: "SKIPPED", reason: "No: volumes"},
		"{1} setUpClass (tempest.api.compute.x.Class) ... SKIPPED: because":     {name: "tempest.api.compute.x.Class", outcome: "SKIPPED", reason: "because"},
		"{1} setUpClass (tempest.api.compute.x.Class) [0.0s] ... FAILED":        {name: "tempest.api.compute.x.Class.setUpClass", outcome: "FAILED", seconds: "0.0"},
	} {
		got, ok := parse(text)
		require.True(t, ok, text)
		require.Empty(t, cmp.Diff(want, got, cmp.AllowUnexported(outcome{})), text)
	}
	for _, text := range []string{"", "Captured traceback:", "    tempest.lib.exceptions.TimeoutException: Request timed out", " - Passed: 3"} {
		_, ok := parse(text)
		require.False(t, ok, text)
	}
}

func TestOutcomeInALine(t *testing.T) {
	t.Parallel()
	require.Equal(t, "ok a.B.test_c (1.5s)", outcome{name: "a.B.test_c", outcome: passed, seconds: "1.5"}.String())
	require.Equal(t, "SKIPPED a.B: no volumes", outcome{name: "a.B", outcome: skipped, reason: "no volumes"}.String())
}

func TestEveryTestHasAResult(t *testing.T) {
	t.Parallel()
	r := newResults([]string{"noise", "tempest.a.C.test_1[id-1]", "tempest.a.C.test_2", "tempest.a.D.test_1", "tempest.a.E.test_1", "tempest.a.F.test_1", ""})
	for _, text := range []string{
		"{0} setUpClass (tempest.a.C) ... SKIPPED: no volumes",
		"{0} tempest.a.D.test_1 [1s] ... ok",
		"{0} setUpClass (tempest.a.E) [1s] ... FAILED",
		"{0} tempest.a.F.test_1 ... SKIPPED: no volumes",
	} {
		o, ok := parse(text)
		require.True(t, ok, text)
		r.add(o)
	}
	require.Equal(t, []string{"tempest.a.D.test_1"}, r.passed)
	require.Equal(t, []string{"tempest.a.E.setUpClass"}, r.failed)
	require.Equal(t, map[string][]string{"no volumes": {"tempest.a.C.test_1", "tempest.a.C.test_2", "tempest.a.F.test_1"}}, r.skipped)
	require.Equal(t, []string{"tempest.a.E.test_1"}, r.notRun())
	require.Equal(t, 4, r.ended())
	var out strings.Builder
	r.print(&out)
	require.Contains(t, out.String(), "skipped (3): no volumes\n  tempest.a.C.test_1\n")
	require.Contains(t, out.String(), "left out: ")
}

func TestGoOnAfterEarlierRuns(t *testing.T) {
	t.Parallel()
	r := newResults([]string{
		"tempest.a.C.test_1[id-1]", "tempest.a.C.test_2[id-2]", "tempest.a.C.test_3[id-3]", "tempest.a.D.test_1", "tempest.a.E.test_1", "tempest.a.F.test_1",
	})
	require.NoError(t, r.keep(strings.NewReader(`{0} tempest.a.C.test_1[id-1] [1s] ... ok
# run of abc
{0} tempest.a.C.test_2[id-2] [1s] ... ok
{0} tempest.a.C.test_3[id-3] [1s] ... ok
{0} tempest.a.D.test_1 [1s] ... ok
{0} tearDownClass (tempest.a.D) [1s] ... FAILED
{0} tempest.a.E.test_1 [1s] ... ok
{0} tempest.gone.C.test_1 [1s] ... ok
# run of def
Captured traceback:
{0} tempest.a.C.test_2[id-2] [1s] ... FAILED
{0} setUpClass (tempest.a.C) [1s] ... FAILED
{0} setUpClass (tempest.a.E) ... SKIPPED: no volumes
{0} tempest.a.F.test_1 ... SKIPPED: no volumes
`)))
	require.Equal(t, []string{"tempest.a.C.test_1", "tempest.a.C.test_3"}, r.passed)
	require.Equal(t, map[string]int{unknownCommit: 1, "abc": 1}, r.earlier)
	require.Equal(t, []string{"tempest.a.C.test_2[id-2]", "tempest.a.D.test_1", "tempest.a.E.test_1", "tempest.a.F.test_1"}, r.left())
	var out strings.Builder
	r.print(&out)
	require.Contains(t, out.String(), "passed earlier, abc  ")
}

func TestConfigurationIsComplete(t *testing.T) {
	t.Parallel()
	_, err := render(map[string]string{"Dir": directory})
	require.Error(t, err)
	values := map[string]string{}
	for _, key := range []string{"Dir", "Password", "AuthURL", "Network", "Public", "PublicID", "Flavor", "FlavorAlt", "Image", "ImageAlt", "Extensions"} {
		values[key] = "value-of-" + key
	}
	text, err := render(values)
	require.NoError(t, err)
	for _, value := range values {
		require.Contains(t, text, value)
	}
}
