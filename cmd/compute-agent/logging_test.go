package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLogFileMovedAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.log")
	f := &logFile{path: path}
	require.NoError(t, f.reopen())
	defer f.close()
	write := func(line string) {
		_, err := fmt.Fprintln(f, line)
		require.NoError(t, err)
	}
	write("one")
	require.NoError(t, os.Rename(path, path+".1"))
	write("two")
	require.NoError(t, f.reopen())
	write("three")
	for file, want := range map[string]string{path + ".1": "one\ntwo\n", path: "three\n"} {
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.NoError(t, os.Rename(filepath.Dir(path), filepath.Dir(path)+".away"))
	require.Error(t, f.reopen())
	write("four")
}
