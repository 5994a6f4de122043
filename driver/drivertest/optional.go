package drivertest

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

// The suites of the optional interfaces: a driver that has one meets it.

func testSuspend(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	s, ok := d.(driver.Suspender)
	if !ok {
		t.Skip("the implementation does not suspend")
	}
	require.ErrorIs(t, s.Suspend(ctx, "nobody"), driver.ErrNotFound)
	require.ErrorIs(t, s.Resume(ctx, "nobody"), driver.ErrNotFound)
	uuid := h.create(t, d, 1)
	require.ErrorIs(t, s.Suspend(ctx, uuid), driver.ErrNotRunning)
	require.ErrorIs(t, s.Resume(ctx, uuid), driver.ErrNotRunning)
	h.start(t, d, uuid)
	require.NoError(t, s.Resume(ctx, uuid), "resume a guest that runs")
	first := h.state(t, d, uuid, driver.PowerStateRunning).InitPID
	events := d.Events(ctx)
	for range 2 {
		require.NoError(t, s.Suspend(ctx, uuid))
		require.Equal(t, first, h.state(t, d, uuid, driver.PowerStateSuspended).InitPID)
	}
	expect(t, events, uuid, driver.PowerStateSuspended)
	if h.Reopen != nil {
		h.state(t, h.Reopen(t, d), uuid, driver.PowerStateSuspended)
	}
	for range 2 {
		require.NoError(t, s.Resume(ctx, uuid))
		require.Equal(t, first, h.state(t, d, uuid, driver.PowerStateRunning).InitPID)
	}
	require.NoError(t, d.Pause(ctx, uuid))
	h.state(t, d, uuid, driver.PowerStatePaused)
	require.NoError(t, d.Unpause(ctx, uuid))

	require.NoError(t, s.Suspend(ctx, uuid))
	require.NoError(t, d.Stop(ctx, uuid, haltWithin, retry), "stop a suspended guest")
	h.state(t, d, uuid, driver.PowerStateShutdown)
	require.ErrorIs(t, s.Resume(ctx, uuid), driver.ErrNotRunning)
	h.start(t, d, uuid)
	require.NoError(t, d.Pause(ctx, uuid))
	h.state(t, d, uuid, driver.PowerStatePaused)
	require.NoError(t, d.Destroy(ctx, uuid))
}

func testUsage(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	i, ok := d.(driver.Inspector)
	if !ok {
		t.Skip("the implementation does not count")
	}
	_, err := i.Usage(ctx, "nobody")
	require.ErrorIs(t, err, driver.ErrNotFound)
	uuid := h.create(t, d, 1)
	_, err = i.Usage(ctx, uuid)
	require.ErrorIs(t, err, driver.ErrNotRunning)
	h.start(t, d, uuid)
	u, err := i.Usage(ctx, uuid)
	require.NoError(t, err)
	require.GreaterOrEqual(t, u.CPUTime, time.Duration(0))
	require.GreaterOrEqual(t, u.MemoryUsed, int64(0))
}

func testOpenRoot(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	o, ok := d.(driver.RootOpener)
	if !ok {
		t.Skip("the implementation has no files")
	}
	_, err := o.OpenRoot(ctx, "nobody")
	require.ErrorIs(t, err, driver.ErrNotFound)
	uuid := h.create(t, d, 1)
	_, err = o.OpenRoot(ctx, uuid)
	require.ErrorIs(t, err, driver.ErrNotRunning)
}

// output collects what a console shows.
type output struct {
	mu   sync.Mutex // guards the fields below
	text strings.Builder
	end  error
}

func collect(r io.Reader) *output {
	o := &output{}
	go func() {
		b := make([]byte, 512)
		for {
			n, err := r.Read(b)
			o.mu.Lock()
			o.text.Write(b[:n])
			o.end = err
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return o
}

func (o *output) shows(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains(o.text.String(), text)
}

func (o *output) ended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end != nil
}

func testConsole(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	c, ok := d.(driver.ConsoleOpener)
	if !ok {
		t.Skip("the implementation has no console to type at")
	}
	_, err := c.OpenConsole(ctx, "nobody")
	require.ErrorIs(t, err, driver.ErrNotFound)
	uuid := h.create(t, d, 1)
	_, err = c.OpenConsole(ctx, uuid)
	require.ErrorIs(t, err, driver.ErrNotRunning)
	h.start(t, d, uuid)

	first, err := c.OpenConsole(ctx, uuid)
	require.NoError(t, err)
	seen := collect(first)
	types(t, first, seen, "first typist")
	second, err := c.OpenConsole(ctx, uuid)
	require.NoError(t, err)
	seenToo := collect(second)
	types(t, second, seenToo, "second typist")
	require.False(t, seenToo.shows("first typist"), "it begins where it is")
	require.Eventually(t, func() bool { return seen.shows("second typist") }, eventWithin, 10*time.Millisecond)
	require.NoError(t, second.Close())
	require.Error(t, second.Close(), "closed already")
	require.Eventually(t, seenToo.ended, eventWithin, 10*time.Millisecond)
	_, err = second.Write([]byte("x"))
	require.Error(t, err)
	log, err := d.ConsoleLog(ctx, uuid, logLimit)
	require.NoError(t, err)
	require.Contains(t, string(log), "second typist", "the log goes on")

	if h.Reboot != nil {
		before := h.state(t, d, uuid, driver.PowerStateRunning).InitPID
		h.Reboot(t, d, uuid)
		require.Eventually(t, func() bool {
			info, err := d.Info(ctx, uuid)
			return err == nil && info.PowerState == driver.PowerStateRunning && info.InitPID != before
		}, bootWithin, 20*time.Millisecond, "a guest reboots although somebody is connected")
		require.Eventually(t, func() bool { return seen.shows(BootLine) }, bootWithin, 10*time.Millisecond)
		types(t, first, seen, "after the reboot")
	}
	require.NoError(t, d.Stop(ctx, uuid, 0, 0))
	require.Eventually(t, seen.ended, eventWithin, 10*time.Millisecond, "it ends with the guest")
	_, err = first.Write([]byte("x"))
	require.Error(t, err)
	require.NoError(t, first.Close())
}

// types writes a line and waits for the terminal's echo.
func types(t *testing.T, console io.Writer, seen *output, text string) {
	t.Helper()
	_, err := io.WriteString(console, text+"\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return seen.shows(text) }, eventWithin, 10*time.Millisecond, "the terminal echoes")
}
