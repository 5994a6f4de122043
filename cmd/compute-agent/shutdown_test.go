package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/internal/control"
)

func TestShutDownGuests(t *testing.T) {
	t.Parallel()
	d := fake.New()
	for _, name := range []string{"good", "paused", "deaf", "off", "stuck"} {
		require.NoError(t, d.Create(t.Context(), driver.Spec{UUID: name, Name: "instance-" + name}, t.TempDir()))
		if name != "off" {
			require.NoError(t, d.Start(t.Context(), name, nil))
		}
	}
	require.NoError(t, d.Pause(t.Context(), "paused"))
	d.SetDeaf("deaf", true)
	stuck := errors.New("a process does not die")
	d.Fail("Stop", "stuck", stuck)

	var out bytes.Buffer
	err := shutDownGuests(t.Context(), d, 10*time.Millisecond, &out)
	require.ErrorIs(t, err, stuck)
	for _, want := range []string{"instance-good good: shut down", "instance-paused paused: shut down", "instance-deaf deaf: killed"} {
		require.Contains(t, out.String(), want)
	}
	require.NotContains(t, out.String(), "instance-off")
	for _, name := range []string{"good", "paused", "deaf", "off"} {
		info, err := d.Info(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, driver.PowerStateShutdown, info.PowerState, name)
	}
}

func TestShutdownRefusesWithAgent(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), control.SocketName)
	require.NoError(t, noAgentRuns(t.Context(), socket))
	listener, err := control.Listen(t.Context(), socket)
	require.NoError(t, err)
	require.ErrorContains(t, noAgentRuns(t.Context(), socket), "stop it first")
	require.NoError(t, listener.Close())
	require.NoError(t, noAgentRuns(t.Context(), socket))
}
