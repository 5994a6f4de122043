package compute

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/console"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

func TestConsoleOutput(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.driver.WriteConsole(uuid, "one\ntwo\nthr\xc3\xa9e\n")
	for _, c := range []struct{ tail, want string }{
		{"null", "one\ntwo\nthr\ufffd\ufffde\n"},
		{"0", ""},
		{`"0"`, ""},
		{"1", ""},
		{"2", "thr\ufffd\ufffde\n"},
		{`"3"`, "two\nthr\ufffd\ufffde\n"},
		{"4", "one\ntwo\nthr\ufffd\ufffde\n"},
		{"99", "one\ntwo\nthr\ufffd\ufffde\n"},
		{"-1", "one\ntwo\nthr\ufffd\ufffde\n"},
		{`"many"`, ""},
		{"[]", ""},
		{"1.5", ""},
	} {
		got, err := w.operate("get_console_output", "", map[string]any{"tail_length": json.RawMessage(c.tail)})
		require.NoError(t, err)
		require.Equal(t, c.want, got, c.tail)
	}
	got, err := w.operate("get_console_output", "", nil)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(got.(string), "one"))
	require.Empty(t, w.nova.Log(), "a query leaves no trace")

	w.driver.WriteConsole(uuid, strings.Repeat("x", console.MaxBytes))
	got, err = w.operate("get_console_output", "", nil)
	require.NoError(t, err)
	require.Len(t, got, console.MaxBytes)
}

func TestConsoleOutputFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.buildArgs(nil)
	for vm, class := range map[string]string{"building": "InstanceNotReady", "active": "ConsoleNotAvailable", "error": "ConsoleNotAvailable"} {
		w.nova.Update(uuid, map[string]any{"vm_state": vm})
		_, err := w.operate("get_console_output", "", nil)
		require.True(t, exception.Is(err, class), "%s: %v", vm, err)
	}
	w.driver.Fail("ConsoleLog", "", errBoom)
	_, err := w.operate("get_console_output", "", nil)
	require.ErrorIs(t, err, errBoom)
}
