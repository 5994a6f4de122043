// Package drivertest is the conformance suite of driver.Driver: one set of
// expectations that every implementation meets. It also builds small root file
// systems for drivers that run real guests.
package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
)

// BootLine is what a guest's console shows once it is up.
const BootLine = "guest is up"

// Deadlines of the suite. A change of state must be told within a second; machines
// that run tests are busy, so more is allowed.
const (
	eventWithin = 15 * time.Second
	quietFor    = 500 * time.Millisecond
	bootWithin  = time.Minute
	haltWithin  = time.Minute
	retry       = time.Second
	logLimit    = 4096
)

// Harness connects the suite to an implementation. Guests are expected to write
// BootLine to their console when they are up.
type Harness struct {
	// New returns a driver with no instance; the harness cleans it up at the end of t.
	New func(t *testing.T) driver.Driver
	// Spec returns the n-th instance of a test with its root file system; n differs per instance.
	Spec func(t *testing.T, n int) (driver.Spec, string)
	// Started is called after a start, before the suite looks at the console; nil: nothing.
	Started func(t *testing.T, d driver.Driver, uuid string)
	// PowerOff makes a guest power itself off from inside.
	PowerOff func(t *testing.T, d driver.Driver, uuid string)
	// Reboot makes a guest reboot itself from inside and returns once it was asked; nil: not tested.
	Reboot func(t *testing.T, d driver.Driver, uuid string)
	// Deafen makes a running guest ignore requests to halt.
	Deafen func(t *testing.T, d driver.Driver, uuid string)
	// NIC makes a link of its own for a guest and calls it name inside; nil: interfaces are not tested.
	NIC func(t *testing.T, name string) driver.NIC
	// Unplug removes the link of a NIC, wherever it is.
	Unplug func(t *testing.T, d driver.Driver, uuid string, nic driver.NIC)
	// Interfaces lists the names of a running guest's interfaces in order, without lo.
	Interfaces func(t *testing.T, d driver.Driver, uuid string) []string
	// Reopen returns a second driver over the same instances, as after a restart of the
	// agent; nil: not tested.
	Reopen func(t *testing.T, d driver.Driver) driver.Driver
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"unknown instance", testUnknown},
		{"create", testCreate},
		{"life", testLife},
		{"pause", testPause},
		{"shutdown", testShutdown},
		{"deaf guest", testDeaf},
		{"destroy in every state", testDestroy},
		{"events", testEvents},
		{"events of guests that run already", testEventsOfEarlier},
		{"events end", testEventsEnd},
		{"reboot inside", testReboot},
		{"agent restart", testReopen},
		{"exec", testExec},
		{"interfaces that change", testNICs},
		{"reboot inside after a change", testRebootWithNICs},
		{"many at once", testMany},
		{"suspend", testSuspend},
		{"usage", testUsage},
		{"root", testOpenRoot},
		{"console", testConsole},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, h) })
	}
}

func testUnknown(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	require.ErrorIs(t, d.Start(ctx, "nobody", nil), driver.ErrNotFound)
	require.ErrorIs(t, d.Stop(ctx, "nobody", time.Second, 0), driver.ErrNotFound)
	_, err := d.Shutdown(ctx, "nobody", time.Second)
	require.ErrorIs(t, err, driver.ErrNotFound)
	require.ErrorIs(t, d.Pause(ctx, "nobody"), driver.ErrNotFound)
	require.ErrorIs(t, d.Unpause(ctx, "nobody"), driver.ErrNotFound)
	_, err = d.Info(ctx, "nobody")
	require.ErrorIs(t, err, driver.ErrNotFound)
	_, err = d.ConsoleLog(ctx, "nobody", logLimit)
	require.ErrorIs(t, err, driver.ErrNotFound)
	_, err = d.Exec(ctx, "nobody", driver.Command{Args: []string{"true"}})
	require.ErrorIs(t, err, driver.ErrNotFound)
	require.NoError(t, d.Destroy(ctx, "nobody"))
	specs, err := d.List(ctx)
	require.NoError(t, err)
	require.Empty(t, specs)
	name, version := d.Version()
	require.NotEmpty(t, name)
	require.Positive(t, version)
}

func testCreate(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	spec, rootfs := h.Spec(t, 1)
	require.NoError(t, d.Create(ctx, spec, rootfs))
	require.NoError(t, d.Create(ctx, spec, rootfs), "repeated")
	info, err := d.Info(ctx, spec.UUID)
	require.NoError(t, err)
	require.Equal(t, driver.Info{PowerState: driver.PowerStateShutdown}, info)

	thief, _ := h.Spec(t, 2)
	thief.Name = spec.Name
	require.ErrorIs(t, d.Create(ctx, thief, rootfs), driver.ErrExists)
	renamed := spec
	renamed.Name += "x"
	require.ErrorIs(t, d.Create(ctx, renamed, rootfs), driver.ErrExists)

	specs, err := d.List(ctx)
	require.NoError(t, err)
	require.Equal(t, []driver.Spec{spec}, specs)
	require.NoError(t, d.Destroy(ctx, spec.UUID))
	require.NoError(t, d.Create(ctx, thief, rootfs), "the name is free again")
}

func testLife(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	require.NoError(t, d.Stop(ctx, uuid, time.Second, 0), "stop a guest that is stopped")
	h.start(t, d, uuid)
	first := h.state(t, d, uuid, driver.PowerStateRunning)
	require.Positive(t, first.InitPID)
	require.WithinDuration(t, time.Now(), first.StartedAt, bootWithin)
	require.NoError(t, d.Start(ctx, uuid, nil), "start a guest that runs")
	require.Equal(t, first.InitPID, h.state(t, d, uuid, driver.PowerStateRunning).InitPID)

	require.NoError(t, d.Stop(ctx, uuid, haltWithin, retry))
	require.Equal(t, driver.Info{PowerState: driver.PowerStateShutdown}, h.state(t, d, uuid, driver.PowerStateShutdown))
	log, err := d.ConsoleLog(ctx, uuid, logLimit)
	require.NoError(t, err)
	require.Contains(t, string(log), BootLine, "the console of a stopped guest")
	log, err = d.ConsoleLog(ctx, uuid, 3)
	require.NoError(t, err)
	require.Len(t, log, 3)

	h.start(t, d, uuid)
	require.NotEqual(t, first.InitPID, h.state(t, d, uuid, driver.PowerStateRunning).InitPID)
	require.NoError(t, d.Stop(ctx, uuid, 0, 0), "by force")
	h.state(t, d, uuid, driver.PowerStateShutdown)
}

func testPause(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	require.ErrorIs(t, d.Pause(ctx, uuid), driver.ErrNotRunning)
	require.ErrorIs(t, d.Unpause(ctx, uuid), driver.ErrNotRunning)
	h.start(t, d, uuid)
	require.NoError(t, d.Unpause(ctx, uuid), "unpause a guest that is not paused")
	for range 2 {
		require.NoError(t, d.Pause(ctx, uuid))
		h.state(t, d, uuid, driver.PowerStatePaused)
	}
	require.NoError(t, d.Start(ctx, uuid, nil), "start leaves a paused guest alone")
	h.state(t, d, uuid, driver.PowerStatePaused)
	_, err := d.Exec(ctx, uuid, driver.Command{Args: []string{"cat"}})
	require.ErrorIs(t, err, driver.ErrNotRunning)
	for range 2 {
		require.NoError(t, d.Unpause(ctx, uuid))
		h.state(t, d, uuid, driver.PowerStateRunning)
	}
	require.NoError(t, d.Pause(ctx, uuid))
	require.NoError(t, d.Stop(ctx, uuid, haltWithin, retry), "stop a paused guest")
	h.state(t, d, uuid, driver.PowerStateShutdown)
}

func testShutdown(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	halted, err := d.Shutdown(ctx, uuid, time.Second)
	require.NoError(t, err)
	require.True(t, halted, "a guest that is stopped")
	// Without waiting for the boot: an init that is not ready yet must not lose the request.
	require.NoError(t, d.Start(ctx, uuid, nil))
	halted, err = d.Shutdown(ctx, uuid, haltWithin)
	require.NoError(t, err)
	require.True(t, halted)
	h.state(t, d, uuid, driver.PowerStateShutdown)
}

func testDeaf(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	h.start(t, d, uuid)
	h.Deafen(t, d, uuid)
	halted, err := d.Shutdown(ctx, uuid, quietFor)
	require.NoError(t, err)
	require.False(t, halted)
	h.state(t, d, uuid, driver.PowerStateRunning)
	begin := time.Now()
	require.NoError(t, d.Stop(ctx, uuid, quietFor, quietFor/4))
	require.Less(t, time.Since(begin), haltWithin)
	h.state(t, d, uuid, driver.PowerStateShutdown)
}

func testDestroy(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	created, running, paused := h.create(t, d, 1), h.create(t, d, 2), h.create(t, d, 3)
	h.start(t, d, running)
	h.start(t, d, paused)
	require.NoError(t, d.Pause(ctx, paused))
	for _, uuid := range []string{created, running, paused} {
		require.NoError(t, d.Destroy(ctx, uuid))
		require.NoError(t, d.Destroy(ctx, uuid), "repeated")
		_, err := d.Info(ctx, uuid)
		require.ErrorIs(t, err, driver.ErrNotFound)
	}
	specs, err := d.List(ctx)
	require.NoError(t, err)
	require.Empty(t, specs)
}

func testEvents(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	events := d.Events(ctx)
	h.start(t, d, uuid)
	expect(t, events, uuid, driver.PowerStateRunning)
	require.NoError(t, d.Pause(ctx, uuid))
	expect(t, events, uuid, driver.PowerStatePaused)
	require.NoError(t, d.Unpause(ctx, uuid))
	expect(t, events, uuid, driver.PowerStateRunning)
	h.PowerOff(t, d, uuid)
	expect(t, events, uuid, driver.PowerStateShutdown)
	h.state(t, d, uuid, driver.PowerStateShutdown)
	h.start(t, d, uuid)
	expect(t, events, uuid, driver.PowerStateRunning)
	require.NoError(t, d.Stop(ctx, uuid, 0, 0))
	expect(t, events, uuid, driver.PowerStateShutdown)
	quiet(t, events)
}

func testEventsOfEarlier(t *testing.T, h Harness) {
	d := h.New(t)
	uuid := h.create(t, d, 1)
	h.start(t, d, uuid)
	one, two := d.Events(t.Context()), d.Events(t.Context())
	time.Sleep(2 * quietFor) //nolint:forbidigo // nothing tells that they have looked around
	h.PowerOff(t, d, uuid)
	expect(t, one, uuid, driver.PowerStateShutdown)
	expect(t, two, uuid, driver.PowerStateShutdown)
}

func testEventsEnd(t *testing.T, h Harness) {
	d := h.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := d.Events(ctx)
	cancel()
	select {
	case _, open := <-events:
		require.False(t, open)
	case <-time.After(eventWithin):
		require.Fail(t, "the channel stays open")
	}
}

// reboot has a guest reboot itself and waits until its next run has begun.
func (h Harness) reboot(t *testing.T, d driver.Driver, uuid string) {
	t.Helper()
	before := h.state(t, d, uuid, driver.PowerStateRunning).InitPID
	h.Reboot(t, d, uuid)
	require.Eventually(t, func() bool {
		info, err := d.Info(t.Context(), uuid)
		return err == nil && info.PowerState == driver.PowerStateRunning && info.InitPID != before
	}, bootWithin, 20*time.Millisecond)
	h.state(t, d, uuid, driver.PowerStateRunning)
}

func testReboot(t *testing.T, h Harness) {
	if h.Reboot == nil {
		t.Skip("the implementation has no guests that reboot")
	}
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	h.start(t, d, uuid)
	events := d.Events(ctx)
	for range 2 {
		h.reboot(t, d, uuid)
		quiet(t, events)
	}
	h.PowerOff(t, d, uuid)
	expect(t, events, uuid, driver.PowerStateShutdown)
}

func testReopen(t *testing.T, h Harness) {
	if h.Reopen == nil {
		t.Skip("the implementation keeps nothing outside its process")
	}
	first, ctx := h.New(t), t.Context()
	uuid := h.create(t, first, 1)
	h.start(t, first, uuid)
	info := h.state(t, first, uuid, driver.PowerStateRunning)

	d := h.Reopen(t, first)
	specs, err := d.List(ctx)
	require.NoError(t, err)
	require.Len(t, specs, 1)
	now := h.state(t, d, uuid, driver.PowerStateRunning)
	require.Equal(t, info.InitPID, now.InitPID)
	require.WithinDuration(t, info.StartedAt, now.StartedAt, time.Second)
	events := d.Events(ctx)
	require.NoError(t, d.Stop(ctx, uuid, haltWithin, retry))
	expect(t, events, uuid, driver.PowerStateShutdown)
}

func testExec(t *testing.T, h Harness) {
	d, ctx := h.New(t), t.Context()
	uuid := h.create(t, d, 1)
	_, err := d.Exec(ctx, uuid, driver.Command{Args: []string{"cat"}})
	require.ErrorIs(t, err, driver.ErrNotRunning)
	h.start(t, d, uuid)

	code, err := d.Exec(ctx, uuid, driver.Command{Args: []string{"sh", "-c", "exit 3"}})
	require.NoError(t, err)
	require.Equal(t, 3, code)
	var out, errOut bytes.Buffer
	var every [1 << 18]byte // every byte there is, NUL and those that a terminal would take for itself among them
	_, _ = rand.NewChaCha8([32]byte{}).Read(every[:])
	code, err = d.Exec(ctx, uuid, driver.Command{Args: []string{"cat"}, Stdin: bytes.NewReader(every[:]), Stdout: &out})
	require.NoError(t, err)
	require.Zero(t, code, "the end of the input ends the command")
	require.True(t, bytes.Equal(every[:], out.Bytes()), "%d of %d bytes", out.Len(), len(every))
	code, err = d.Exec(ctx, uuid, driver.Command{
		Args: []string{"sh", "-c", "echo $COLOUR >&2"}, Env: []string{"COLOUR=green"}, Stderr: &errOut,
	})
	require.NoError(t, err)
	require.Zero(t, code)
	require.Equal(t, "green\n", errOut.String())
	code, err = d.Exec(ctx, uuid, driver.Command{Args: []string{"no-such-command"}})
	require.NoError(t, err)
	require.Equal(t, 127, code)
}

// testMany: methods of different instances do not disturb each other.
func testMany(t *testing.T, h Harness) {
	const guests = 5
	d, ctx := h.New(t), t.Context()
	var wg sync.WaitGroup
	errs := make(chan error, guests)
	for n := range guests {
		uuid := h.create(t, d, n+1)
		wg.Go(func() {
			errs <- func() error {
				for _, step := range []func() error{
					func() error { return d.Start(ctx, uuid, nil) },
					func() error { return d.Pause(ctx, uuid) },
					func() error { return d.Unpause(ctx, uuid) },
					func() error { return d.Stop(ctx, uuid, haltWithin, retry) },
					func() error { return d.Destroy(ctx, uuid) },
				} {
					if err := step(); err != nil {
						return fmt.Errorf("guest %d: %w", n, err)
					}
				}
				return nil
			}()
		})
	}
	wg.Wait()
	for range guests {
		require.NoError(t, <-errs)
	}
}

func (h Harness) create(t *testing.T, d driver.Driver, n int) string {
	t.Helper()
	spec, rootfs := h.Spec(t, n)
	require.NoError(t, d.Create(t.Context(), spec, rootfs))
	return spec.UUID
}

// start starts a guest and waits until it is up.
func (h Harness) start(t *testing.T, d driver.Driver, uuid string) {
	t.Helper()
	h.startWith(t, d, uuid)
}

func (h Harness) startWith(t *testing.T, d driver.Driver, uuid string, nics ...driver.NIC) {
	t.Helper()
	before := strings.Count(h.console(t, d, uuid), BootLine)
	require.NoError(t, d.Start(t.Context(), uuid, nics))
	if h.Started != nil {
		h.Started(t, d, uuid)
	}
	require.Eventually(t, func() bool { return strings.Count(h.console(t, d, uuid), BootLine) > before },
		bootWithin, 10*time.Millisecond, "the guest does not come up")
}

func (h Harness) console(t *testing.T, d driver.Driver, uuid string) string {
	t.Helper()
	log, err := d.ConsoleLog(t.Context(), uuid, 1<<20)
	require.NoError(t, err)
	return string(log)
}

func (h Harness) state(t *testing.T, d driver.Driver, uuid string, want driver.PowerState) driver.Info {
	t.Helper()
	info, err := d.Info(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, want.String(), info.PowerState.String())
	return info
}

func expect(t *testing.T, events <-chan driver.Event, uuid string, want driver.PowerState) {
	t.Helper()
	select {
	case e := <-events:
		require.Equal(t, uuid, e.UUID)
		require.Equal(t, want.String(), e.PowerState.String())
		require.WithinDuration(t, time.Now(), e.At, eventWithin)
	case <-time.After(eventWithin):
		require.Failf(t, "no event", "want %s", want)
	}
}

func quiet(t *testing.T, events <-chan driver.Event) {
	t.Helper()
	select {
	case e := <-events:
		require.Failf(t, "unexpected event", "%s %s", e.UUID, e.PowerState)
	case <-time.After(quietFor):
	}
}
