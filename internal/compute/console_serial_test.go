package compute

import (
	"context"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/console"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

// consoles is a world whose server has a serial console.
func consoles(t *testing.T, ports ...int) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	first := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	last := first + 50
	if len(ports) == 2 {
		first, last = ports[0], ports[1]
	}
	w := built(t, func(o *Options) {
		o.SerialConsole = console.SerialSettings{
			Enabled: true, BaseURL: "ws://proxy:6083/", Address: "127.0.0.1", First: first, Last: last, TokenTTL: 10 * time.Minute,
		}
	})
	w.serveConsoles()
	return w
}

// serveConsoles runs the consoles as the agent does, until the returned function is called or the test ends.
func (w *world) serveConsoles() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m := w.Manager
	go func() { done <- m.ServeConsoles(ctx) }()
	ended := false
	stop = func() {
		if cancel(); !ended {
			require.ErrorIs(w.t, <-done, context.Canceled)
			ended = true
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func TestSerialConsole(t *testing.T) {
	t.Parallel()
	w := consoles(t)
	answer, err := w.operate("get_serial_console", "", map[string]any{"console_type": "serial"})
	require.NoError(t, err)
	got := answer.(map[string]any)
	port := got["port"].(int)
	require.Equal(t, map[string]any{
		"host": "127.0.0.1", "port": port, "internal_access_path": nil, "token": "token-1", "access_url": "ws://proxy:6083/?token=token-1",
	}, got)
	require.Len(t, w.nova.LogOf("ConsoleAuthToken.authorize"), 1)

	validate := func(port, kind string) any {
		t.Helper()
		valid, err := w.operate("validate_console_port", "", map[string]any{"port": port, "console_type": kind})
		require.NoError(t, err)
		return valid
	}
	require.Equal(t, false, validate(strconv.Itoa(port+1), "serial"))
	require.Equal(t, false, validate(strconv.Itoa(port), "novnc"))
	require.Equal(t, false, validate("many", "serial"))
	require.Equal(t, true, validate(strconv.Itoa(port), "serial"))

	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, "typed")
	require.NoError(t, err)
	echo := make([]byte, 5)
	_, err = io.ReadFull(conn, echo)
	require.NoError(t, err)
	require.Equal(t, "typed", string(echo))

	w.nova.Update(uuid, map[string]any{"task_state": "deleting"})
	_, err = w.operate("terminate_instance", "deleting", map[string]any{"bdms": nil})
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the console went with the server")
}

func TestSerialConsoleRefusals(t *testing.T) {
	t.Parallel()
	t.Run("off", func(t *testing.T) {
		t.Parallel()
		w := built(t)
		_, err := w.operate("get_serial_console", "", map[string]any{"console_type": "serial"})
		require.True(t, exception.Is(err, "ConsoleTypeUnavailable"), err)
		valid, err := w.operate("validate_console_port", "", map[string]any{"port": "1", "console_type": "serial"})
		require.NoError(t, err)
		require.Equal(t, false, valid)
		require.NoError(t, w.ServeConsoles(t.Context()))
	})
	t.Run("on", func(t *testing.T) {
		t.Parallel()
		w := consoles(t)
		_, err := w.operate("get_serial_console", "", map[string]any{"console_type": "shell"})
		require.True(t, exception.Is(err, "ConsoleTypeInvalid"), err)
		for _, args := range []map[string]any{{"port": 1, "console_type": "serial"}, {"console_type": "serial"}, {"port": "1"}} {
			_, err = w.operate("validate_console_port", "", args)
			require.Error(t, err)
		}
		require.NoError(t, w.driver.Destroy(t.Context(), uuid))
		_, err = w.operate("get_serial_console", "", map[string]any{"console_type": "serial"})
		require.True(t, exception.Is(err, "InstanceNotFound"), err)
		w.nova.Update(uuid, map[string]any{"vm_state": "building"})
		_, err = w.operate("get_serial_console", "", map[string]any{"console_type": "serial"})
		require.True(t, exception.Is(err, "InstanceNotReady"), err)
	})
	t.Run("no port is free", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		taken := l.Addr().(*net.TCPAddr).Port
		w := consoles(t, taken, taken)
		_, err = w.operate("get_serial_console", "", map[string]any{"console_type": "serial"})
		require.True(t, exception.Is(err, "SocketPortRangeExhaustedException"), err)
	})
	t.Run("conductor", func(t *testing.T) {
		t.Parallel()
		w := consoles(t)
		w.nova.Fail("ConsoleAuthToken.authorize", errBoom)
		_, err := w.operate("get_serial_console", "", map[string]any{"console_type": "serial"})
		require.ErrorContains(t, err, "boom")
	})
}
