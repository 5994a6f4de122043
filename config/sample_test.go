package config

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the sample file and the documentation anew")

func TestGeneratedFiles(t *testing.T) {
	t.Parallel()
	for file, generate := range map[string]func(io.Writer) error{
		"../etc/compute-agent.conf.sample": WriteSample,
		"../docs/options.md":               WriteDocs,
	} {
		var b bytes.Buffer
		require.NoError(t, generate(&b))
		if *update {
			require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o750))
			require.NoError(t, os.WriteFile(file, b.Bytes(), 0o644)) // #nosec G306 -- a source file
		}
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, b.String(), string(got), "%s differs from the registry: go test ./config -run TestGeneratedFiles -update", file)
	}
}

// TestSampleIsTheDefaults reads the sample with every option switched on.
func TestSampleIsTheDefaults(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	require.NoError(t, WriteSample(&b))
	var text strings.Builder
	for line := range strings.Lines(b.String()) {
		if option, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(option, " ") && option != "\n" && !strings.HasSuffix(option, "=\n") {
			line = option
		}
		text.WriteString(line)
	}
	c, r := load(t, text.String(), credentials)
	require.Empty(t, r.Findings)
	want, _ := load(t)
	require.Equal(t, want, c)
}
