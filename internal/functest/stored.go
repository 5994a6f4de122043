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

// UpdateStored is the environment variable with which Stored writes its files.
const UpdateStored = "COMPUTE_AGENT_UPDATE_STORED"

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// Stored returns the content of testdata/<dir>/<name>.gz, which must be what the test has just made: input that can be looked at, and be
// put to other programs, without losing what says how it was made. With UpdateStored set it writes the file.
func Stored(tb testing.TB, dir, name string, made []byte) []byte {
	tb.Helper()
	file := filepath.Join("testdata", dir, strings.Trim(notInNames.ReplaceAllString(strings.ToLower(name), "-"), "-")+".gz")
	if os.Getenv(UpdateStored) != "" {
		var packed bytes.Buffer
		w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		require.NoError(tb, err)
		_, err = w.Write(made)
		require.NoError(tb, err)
		require.NoError(tb, w.Close())
		require.NoError(tb, os.MkdirAll(filepath.Dir(file), 0o755))    //nolint:gosec // as git makes it
		require.NoError(tb, os.WriteFile(file, packed.Bytes(), 0o644)) //nolint:gosec // as git makes it
	}
	f, err := os.Open(file)
	require.NoError(tb, err, "%s=1 writes the files of this test", UpdateStored)
	defer f.Close() //nolint:errcheck // only read
	r, err := gzip.NewReader(f)
	require.NoError(tb, err)
	stored, err := io.ReadAll(r)
	require.NoError(tb, err)
	if !bytes.Equal(made, stored) {
		require.Fail(tb, "not what the test makes now", "%s: %d bytes, made %d; %s=1 writes it", file, len(stored), len(made), UpdateStored)
	}
	return stored
}
