// Package fake is a driver.Driver that runs nothing. It holds the state that real guests would have. Opened on the agent's
// database (Open) it is what [DEFAULT] compute_driver = fake.FakeDriver asks for: its guests, too, outlive the agent. In memory (New)
// it serves the manager's unit tests, which look at it, act as a guest (SetState, WriteConsole), and make calls fail (Fail).
package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/state"
)

// firstPID is where the numbers of pretended init processes begin.
const firstPID = 1000

// eventBuffer is enough for any unit test that reads its events late.
const eventBuffer = 256

// Instance is what the fake knows about one instance.
type Instance struct {
	Spec    driver.Spec
	RootFS  string
	NICs    []driver.NIC // of the last start, and what was changed since
	State   driver.PowerState
	InitPID int
	Started time.Time
	Console []byte `json:"-"` // the last consoleSize bytes
	// Deaf: the guest ignores requests to halt.
	Deaf bool `json:"-"`
	// Usage is what Usage tells, Root what OpenRoot opens.
	Usage driver.Usage `json:"-"`
	Root  string       `json:"-"`
	// Rebooting: the guest, which is down, asked to be rebooted.
	Rebooting bool

	dropped int // bytes of the console before those that are kept
}

// Driver implements driver.Driver. The zero value is not usable; see Open and New.
type Driver struct {
	// ExecFunc answers Exec; nil: every command succeeds without output.
	// Crash runs after AttachNIC has done its work; nil: nothing.
	Crash    func()
	ExecFunc func(ctx context.Context, uuid string, cmd driver.Command) (int, error)

	mu        sync.Mutex // guards the fields below
	instances map[string]*Instance
	failures  map[string][]error // "Method" or "Method uuid" -> errors to return, one per call
	subs      map[chan driver.Event]bool
	consoles  map[*console]bool // open ones
	nextPID   int
	calls     []string  // not with a database: an agent runs for long
	db        *state.DB // nil: in memory alone
}

var (
	_ driver.Driver     = (*Driver)(nil)
	_ driver.NICChanger = (*Driver)(nil)
)

// New returns a driver without instances, in memory.
func New() *Driver {
	return &Driver{
		instances: make(map[string]*Instance),
		failures:  make(map[string][]error),
		subs:      make(map[chan driver.Event]bool),
		consoles:  make(map[*console]bool),
		nextPID:   firstPID,
	}
}

// Fail makes the next calls of a method (e.g. "Start") return these errors, one each;
// with a uuid only those for that instance.
func (d *Driver) Fail(method, uuid string, errs ...error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := strings.TrimSpace(method + " " + uuid)
	d.failures[key] = append(d.failures[key], errs...)
}

// Forgive takes back what Fail has put there for a method, with that uuid, and was not met yet.
func (d *Driver) Forgive(method, uuid string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failures, strings.TrimSpace(method+" "+uuid))
}

// SetState makes a guest change its power state by itself, as poweroff inside does.
func (d *Driver) SetState(uuid string, state driver.PowerState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.instances[uuid]; i != nil {
		d.set(i, state)
	}
}

// SetDeaf makes a guest ignore requests to halt, or hear them again.
func (d *Driver) SetDeaf(uuid string, deaf bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.instances[uuid]; i != nil {
		i.Deaf = deaf
	}
}

// Reboot makes a guest whose interfaces changed reboot itself: it is down and wants to be started.
func (d *Driver) Reboot(uuid string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.instances[uuid]; i != nil {
		i.Rebooting = true
		d.set(i, driver.PowerStateShutdown)
	}
}

// WriteConsole adds output to a guest's console.
func (d *Driver) WriteConsole(uuid, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.instances[uuid]; i != nil {
		d.print(i, []byte(text))
	}
}

// Instance returns a copy of what is known about an instance.
func (d *Driver) Instance(uuid string) (Instance, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.instances[uuid]
	if i == nil {
		return Instance{}, false
	}
	c := *i
	c.NICs, c.Console = slices.Clone(i.NICs), slices.Clone(i.Console)
	return c, true
}

// Calls returns the calls so far that change something, as "Method uuid".
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// String prints the instances, one per line, for test failures.
func (d *Driver) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, uuid := range slices.Sorted(maps.Keys(d.instances)) {
		i := d.instances[uuid]
		fmt.Fprintf(&b, "%s %s %s nics=%d\n", uuid, i.Spec.Name, i.State, len(i.NICs))
	}
	return b.String()
}

// SetLimits implements driver.LimitSetter.
func (d *Driver) SetLimits(ctx context.Context, uuid string, l flavor.Limits) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.instances[uuid]
	if i == nil {
		return driver.ErrNotFound
	}
	i.Spec.Limits = l
	if err := d.begin(ctx, "SetLimits", uuid); err != nil {
		return err
	}
	return d.save(i)
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec, rootfs string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "Create", spec.UUID); err != nil {
		return err
	}
	for uuid, i := range d.instances {
		if (uuid == spec.UUID) != (i.Spec.Name == spec.Name) {
			return fmt.Errorf("create instance %s: %w", spec.UUID, driver.ErrExists)
		}
	}
	if i := d.instances[spec.UUID]; i != nil {
		i.Spec, i.RootFS = spec, rootfs
		return d.save(i)
	}
	i := &Instance{Spec: spec, RootFS: rootfs, State: driver.PowerStateShutdown}
	d.instances[spec.UUID] = i
	return d.save(i)
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, uuid string, nics []driver.NIC) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.find(ctx, "Start", uuid)
	if err != nil || i.InitPID != 0 {
		return err
	}
	i.NICs = slices.Clone(nics)
	i.Started, i.Rebooting = time.Now(), false
	d.set(i, driver.PowerStateRunning)
	d.greet(i)
	return d.save(i)
}

// Stop implements driver.Driver. It does not wait for a deaf guest.
func (d *Driver) Stop(ctx context.Context, uuid string, _, _ time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.find(ctx, "Stop", uuid)
	if err != nil {
		return err
	}
	i.Rebooting = false
	d.set(i, driver.PowerStateShutdown)
	return d.save(i)
}

// Shutdown implements driver.Driver. It does not wait for a deaf guest.
func (d *Driver) Shutdown(ctx context.Context, uuid string, _ time.Duration) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.find(ctx, "Shutdown", uuid)
	if err != nil {
		return false, err
	}
	if i.Deaf && i.InitPID != 0 {
		return false, nil
	}
	d.set(i, driver.PowerStateShutdown)
	return true, d.save(i)
}

// Destroy implements driver.Driver.
func (d *Driver) Destroy(ctx context.Context, uuid string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "Destroy", uuid); err != nil {
		return err
	}
	if i := d.instances[uuid]; i != nil {
		d.set(i, driver.PowerStateShutdown)
		delete(d.instances, uuid)
	}
	return d.forget(uuid)
}

// Pause implements driver.Driver.
func (d *Driver) Pause(ctx context.Context, uuid string) error {
	return d.freeze(ctx, "Pause", uuid, driver.PowerStatePaused)
}

// Unpause implements driver.Driver.
func (d *Driver) Unpause(ctx context.Context, uuid string) error {
	return d.freeze(ctx, "Unpause", uuid, driver.PowerStateRunning)
}

func (d *Driver) freeze(ctx context.Context, method, uuid string, state driver.PowerState) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.find(ctx, method, uuid)
	if err != nil {
		return err
	}
	if i.InitPID == 0 {
		return fmt.Errorf("%s instance %s: %w", strings.ToLower(method), uuid, driver.ErrNotRunning)
	}
	d.set(i, state)
	return d.save(i)
}

// AttachNIC implements driver.NICChanger.
func (d *Driver) AttachNIC(ctx context.Context, uuid string, nic driver.NIC) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.findRunning(ctx, "AttachNIC", uuid)
	if err != nil || nic.Link.Peer == "" {
		return err
	}
	if slices.ContainsFunc(i.NICs, func(n driver.NIC) bool { return n.Name == nic.Name && n.PortID != nic.PortID }) {
		return fmt.Errorf("attach port %s to instance %s: it has an interface %s", nic.PortID, uuid, nic.Name)
	}
	i.NICs = append(without(i.NICs, nic.PortID), nic)
	if d.Crash != nil {
		d.Crash()
	}
	return d.save(i)
}

// DetachNIC implements driver.NICChanger.
func (d *Driver) DetachNIC(ctx context.Context, uuid, portID string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.findRunning(ctx, "DetachNIC", uuid)
	if err != nil {
		return err
	}
	i.NICs = without(i.NICs, portID)
	return d.save(i)
}

func without(nics []driver.NIC, portID string) []driver.NIC {
	return slices.DeleteFunc(slices.Clone(nics), func(n driver.NIC) bool { return n.PortID == portID })
}

// findRunning is find for a guest that is not shut down. d.mu is held.
func (d *Driver) findRunning(ctx context.Context, method, uuid string) (*Instance, error) {
	i, err := d.find(ctx, method, uuid)
	if err == nil && i.InitPID == 0 {
		err = fmt.Errorf("%s of instance %s: %w", method, uuid, driver.ErrNotRunning)
	}
	return i, err
}

// Info implements driver.Driver.
func (d *Driver) Info(_ context.Context, uuid string) (driver.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.instances[uuid]
	if err := d.failure("Info", uuid); err != nil {
		return driver.Info{}, err
	}
	if i == nil {
		return driver.Info{}, notFound(uuid)
	}
	info := driver.Info{PowerState: i.State, InitPID: i.InitPID, Rebooting: i.Rebooting && i.InitPID == 0}
	if i.InitPID != 0 {
		info.StartedAt = i.Started
	}
	return info, nil
}

// ConsoleLog implements driver.Driver.
func (d *Driver) ConsoleLog(_ context.Context, uuid string, limit int) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failure("ConsoleLog", uuid); err != nil {
		return nil, err
	}
	i := d.instances[uuid]
	if i == nil {
		return nil, notFound(uuid)
	}
	return slices.Clone(i.Console[max(len(i.Console)-limit, 0):]), nil
}

// List implements driver.Driver.
func (d *Driver) List(context.Context) ([]driver.Spec, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failure("List", ""); err != nil {
		return nil, err
	}
	specs := make([]driver.Spec, 0, len(d.instances))
	for _, uuid := range slices.Sorted(maps.Keys(d.instances)) {
		specs = append(specs, d.instances[uuid].Spec)
	}
	return specs, nil
}

// Events implements driver.Driver. A reader that falls far behind loses events.
func (d *Driver) Events(ctx context.Context) <-chan driver.Event {
	c := make(chan driver.Event, eventBuffer)
	d.mu.Lock()
	d.subs[c] = true
	d.mu.Unlock()
	context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.subs, c)
		close(c)
	})
	return c
}

// Exec implements driver.Driver.
func (d *Driver) Exec(ctx context.Context, uuid string, cmd driver.Command) (int, error) {
	d.mu.Lock()
	i, err := d.find(ctx, "Exec", uuid)
	if err == nil && i.State != driver.PowerStateRunning {
		err = fmt.Errorf("execute in instance %s: %w", uuid, driver.ErrNotRunning)
	}
	d.mu.Unlock()
	if err != nil {
		return -1, err
	}
	if d.ExecFunc == nil {
		return 0, nil
	}
	return d.ExecFunc(ctx, uuid, cmd)
}

// Version implements driver.Driver with what nova's own says (nova/virt/fake.py).
func (d *Driver) Version() (name string, version int) { return "fake", 1000 }

// set changes a state and tells it. d.mu is held.
func (d *Driver) set(i *Instance, state driver.PowerState) {
	if i.State == state {
		return
	}
	i.State = state
	switch state {
	case driver.PowerStateRunning, driver.PowerStatePaused, driver.PowerStateSuspended:
		if i.InitPID == 0 {
			i.InitPID = d.nextPID
			d.nextPID++
		}
	case driver.PowerStateNoState, driver.PowerStateShutdown, driver.PowerStateCrashed:
		i.InitPID = 0
		d.wakeConsoles()
	}
	e := driver.Event{UUID: i.Spec.UUID, PowerState: state, At: time.Now()}
	for c := range d.subs {
		select {
		case c <- e:
		default:
		}
	}
}

// begin records a call and returns the error that it shall fail with. d.mu is held.
func (d *Driver) begin(ctx context.Context, method, uuid string) error {
	if d.db == nil {
		d.calls = append(d.calls, method+" "+uuid)
	}
	if err := d.failure(method, uuid); err != nil {
		return err
	}
	return ctx.Err()
}

func (d *Driver) failure(method, uuid string) error {
	for _, key := range []string{method + " " + uuid, method} {
		if errs := d.failures[key]; len(errs) > 0 {
			d.failures[key] = errs[1:]
			return errs[0]
		}
	}
	return nil
}

func (d *Driver) find(ctx context.Context, method, uuid string) (*Instance, error) {
	if err := d.begin(ctx, method, uuid); err != nil {
		return nil, err
	}
	if i := d.instances[uuid]; i != nil {
		return i, nil
	}
	return nil, notFound(uuid)
}

func notFound(uuid string) error {
	return fmt.Errorf("instance %s: %w", uuid, driver.ErrNotFound)
}
