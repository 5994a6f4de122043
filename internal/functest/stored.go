package functest

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// UpdateStored is the environment variable with which a Corpus writes its files, and removes those that no test makes any more.
const UpdateStored = "COMPUTE_AGENT_UPDATE_STORED"

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// Corpus is the input of one test, in testdata/<dir>: it can be looked at, and be put to other programs, without losing what says how it
// was made.
type Corpus struct {
	tb    testing.TB
	dir   string
	asked map[string]bool // by file name
}

// NewCorpus is a test's own corpus. When the test ends it fails if there are files that it has not asked for; so it asks for them
// outside of its subtests, of which -run may leave some out.
func NewCorpus(tb testing.TB, dir string) *Corpus {
	tb.Helper()
	c := &Corpus{tb: tb, dir: filepath.Join("testdata", dir), asked: map[string]bool{}}
	tb.Cleanup(c.noneStale)
	return c
}

// Stored returns the content of <name>.gz, which must be what the test has just made. With UpdateStored set it writes the file.
func (c *Corpus) Stored(name string, made []byte) []byte {
	c.tb.Helper()
	base := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(name), "-"), "-") + ".gz"
	require.False(c.tb, c.asked[base], "%q has the file of another input, %s", name, base)
	c.asked[base] = true
	file := filepath.Join(c.dir, base)
	if os.Getenv(UpdateStored) != "" {
		c.write(file, made)
	}
	f, err := os.Open(file)
	require.NoError(c.tb, err, "%s=1 writes the files of this test", UpdateStored)
	defer f.Close() //nolint:errcheck // only read
	r, err := gzip.NewReader(f)
	require.NoError(c.tb, err)
	stored, err := io.ReadAll(r)
	require.NoError(c.tb, err)
	if !bytes.Equal(made, stored) {
		require.Fail(c.tb, "not what the test makes now", "%s: %d bytes, made %d; %s=1 writes it", file, len(stored), len(made), UpdateStored)
	}
	return stored
}

func (c *Corpus) write(file string, made []byte) {
	c.tb.Helper()
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	require.NoError(c.tb, err)
	_, err = w.Write(made)
	require.NoError(c.tb, err)
	require.NoError(c.tb, w.Close())
	require.NoError(c.tb, os.MkdirAll(c.dir, 0o755))                 //nolint:gosec // as git makes it
	require.NoError(c.tb, os.WriteFile(file, packed.Bytes(), 0o644)) //nolint:gosec // as git makes it
}

// noneStale looks for files that the test does not know. One that has failed may not have come to all of them. It does not end the
// test: nothing is printed of one with parallel subtests whose clean-up does (testing.go:tRunner).
func (c *Corpus) noneStale() {
	c.tb.Helper()
	if c.tb.Failed() {
		return
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		c.tb.Errorf("list files of the test: %v", err)
	}
	for _, e := range entries {
		file := filepath.Join(c.dir, e.Name())
		if c.asked[e.Name()] {
			continue
		}
		if os.Getenv(UpdateStored) == "" {
			c.tb.Errorf("no test makes %s; %s=1 removes it", file, UpdateStored)
		} else if err := os.RemoveAll(file); err != nil {
			c.tb.Errorf("remove a file that no test makes: %v", err)
		}
	}
}
