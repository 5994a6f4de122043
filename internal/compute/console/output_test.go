package console

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/rpc"
)

func TestTailLength(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]struct {
		lines int
		all   bool
	}{
		"null": {0, true}, "7": {7, false}, `"7"`: {7, false}, `" 7 "`: {7, false}, "-1": {-1, true}, "0": {0, false}, `"many"`: {0, false}, "1.5": {0, false},
	} {
		lines, all := tailLength(rpc.Args{"tail_length": json.RawMessage(raw)})
		require.Equal(t, want.all, all, raw)
		require.Equal(t, want.lines, lines, raw)
	}
	_, all := tailLength(nil)
	require.True(t, all, "without one")
}

func TestLastLines(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "", 1: "", 2: "b\n", 3: "a\nb\n", 9: "a\nb\n"} {
		require.Equal(t, want, lastLines("a\nb\n", n), n)
	}
	require.Equal(t, "a\ufffd\ufffd\n", asciiText([]byte("a\xc3\xa9\n")), "a character for each byte")
}
