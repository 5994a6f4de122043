package functest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// trial is a test that may fail.
type trial struct {
	testing.TB

	failed   bool
	cleanups []func()
}

func (t *trial) Helper()               {}
func (t *trial) Errorf(string, ...any) { t.failed = true }
func (t *trial) FailNow()              { t.failed = true; runtime.Goexit() }
func (t *trial) Failed() bool          { return t.failed }
func (t *trial) Cleanup(f func())      { t.cleanups = append(t.cleanups, f) }

// passes runs a test with its clean-up.
func passes(tb testing.TB, test func(c *Corpus)) bool {
	tb.Helper()
	t := &trial{TB: tb}
	run := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
	run(func() { test(NewCorpus(t, "hostile")) })
	for _, f := range t.cleanups {
		run(f)
	}
	return !t.failed
}

func TestCorpus(t *testing.T) {
	t.Chdir(t.TempDir())
	two := func(c *Corpus) {
		require.Equal(t, []byte("1"), c.Stored("A name, long", []byte("1")))
		c.Stored("other", []byte("2"))
	}
	one := func(c *Corpus) { c.Stored("other", []byte("2")) }
	require.False(t, passes(t, two), "nothing is stored")
	t.Setenv(UpdateStored, "1")
	require.True(t, passes(t, two))
	t.Setenv(UpdateStored, "")
	require.True(t, passes(t, two))
	require.FileExists(t, filepath.Join("testdata", "hostile", "a-name-long.gz"))
	require.False(t, passes(t, one), "a file that no test makes")
	require.False(t, passes(t, func(c *Corpus) { two(c); c.Stored("Other!", []byte("2")) }), "one file for two inputs")
	require.False(t, passes(t, func(c *Corpus) { two(c); c.tb.FailNow() }))

	t.Setenv(UpdateStored, "1")
	require.NoError(t, os.WriteFile(filepath.Join("testdata", "hostile", "by-hand"), nil, 0o600))
	require.True(t, passes(t, one))
	t.Setenv(UpdateStored, "")
	require.True(t, passes(t, one))
	entries, err := os.ReadDir(filepath.Join("testdata", "hostile"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.False(t, passes(t, func(c *Corpus) { c.Stored("other", []byte("3")) }), "not what is stored")
}
