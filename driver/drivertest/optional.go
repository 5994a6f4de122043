package drivertest

import (
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

// The suites of the optional interfaces: a driver that has one meets it.

// optional gives a driver that has an optional interface, or skips the test.
func optional[T any](t *testing.T, h Harness) (driver.Driver, T) {
	t.Helper()
	d := h.New(t)
	o, ok := d.(T)
	if !ok {
		t.Skipf("the implementation is no %s", reflect.TypeFor[T]())
	}
	return d, o
}

// needsGuest requires that a method refuses an instance that does not exist, and one that does not run. It returns the
// latter.
func (h Harness) needsGuest(t *testing.T, d driver.Driver, method func(uuid string) error) string {
	t.Helper()
	require.ErrorIs(t, method("nobody"), driver.ErrNotFound)
	uuid := h.create(t, d, 1)
	require.ErrorIs(t, method(uuid), driver.ErrNotRunning)
	return uuid
}

func testSuspend(t *testing.T, h Harness) {
	ctx := t.Context()
	d, s := optional[driver.Suspender](t, h)
	require.ErrorIs(t, s.Resume(ctx, "nobody"), driver.ErrNotFound)
	uuid := h.needsGuest(t, d, func(uuid string) error { return s.Suspend(ctx, uuid) })
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
	ctx := t.Context()
	d, i := optional[driver.Inspector](t, h)
	uuid := h.needsGuest(t, d, func(uuid string) error {
		_, err := i.Usage(ctx, uuid)
		return err
	})
	h.start(t, d, uuid)
	u, err := i.Usage(ctx, uuid)
	require.NoError(t, err)
	require.GreaterOrEqual(t, u.CPUTime, time.Duration(0))
	require.GreaterOrEqual(t, u.MemoryUsed, int64(0))
}

func testOpenRoot(t *testing.T, h Harness) {
	d, o := optional[driver.RootOpener](t, h)
	h.needsGuest(t, d, func(uuid string) error {
		_, err := o.OpenRoot(t.Context(), uuid)
		return err
	})
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
	ctx := t.Context()
	d, c := optional[driver.ConsoleOpener](t, h)
	uuid := h.needsGuest(t, d, func(uuid string) error {
		_, err := c.OpenConsole(ctx, uuid)
		return err
	})
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

	if h.Reboot != nil { // also while somebody is connected
		h.reboot(t, d, uuid)
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
