// Package driver is the boundary between the compute manager and whatever runs
// instances. The manager speaks of instances by UUID and says how they should be;
// a driver makes it so. Implementations: driver/lxc and driver/fake; one suite,
// driver/drivertest, runs over both.
package driver

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/vif"
)

// Errors that callers may test.
var (
	ErrNotFound    = errors.New("instance not found")
	ErrExists      = errors.New("instance exists already")
	ErrNotRunning  = errors.New("instance is not running")
	ErrNoResources = errors.New("not enough resources on this host")
	ErrUnsupported = errors.New("not supported by this driver")
	// ErrTimeout: the guest did not do in time what was asked (a stuck process, a frozen init).
	ErrTimeout = errors.New("instance did not respond in time")
	// ErrNeedsRestart: what was asked for holds from the guest's next Start.
	ErrNeedsRestart = errors.New("it takes a restart of the instance")
)

// PowerState carries Nova's numbers (nova/compute/power_state.py).
type PowerState int

// Power states as Nova stores them.
const (
	PowerStateNoState   PowerState = 0
	PowerStateRunning   PowerState = 1
	PowerStatePaused    PowerState = 3
	PowerStateShutdown  PowerState = 4
	PowerStateCrashed   PowerState = 6
	PowerStateSuspended PowerState = 7
)

// String gives the word that versioned notifications use.
func (p PowerState) String() string {
	switch p {
	case PowerStateRunning:
		return "running"
	case PowerStatePaused:
		return "paused"
	case PowerStateShutdown:
		return "shutdown"
	case PowerStateCrashed:
		return "crashed"
	case PowerStateSuspended:
		return "suspended"
	case PowerStateNoState:
	}
	return "pending"
}

// Spec is everything a driver needs to make an instance; it is recorded on the
// host, so that Start works without the control plane.
type Spec struct {
	UUID     string            // instance UUID, the driver's key
	Name     string            // instance.name, e.g. instance-0000002a: the container's name
	Hostname string            // the guest's host name
	ImageID  string            // Glance id, for the record
	Arch     string            // lxc.arch name of the image, e.g. x86_64
	Limits   flavor.Limits     //
	IDs      storage.IDRange   //
	Env      map[string]string // environment of the guest's init
	Binds    []Bind            // directories of the host inside the guest; they must exist at every start
	// ShutdownTimeout bounds a clean stop that the guest asks for itself (reboot inside).
	ShutdownTimeout time.Duration
}

// Bind is a directory of the host that a guest sees. Its owners must be in the guest's id range already.
type Bind struct {
	Source   string // absolute path on the host
	Target   string // path inside, without the leading slash; made if it is not there
	ReadOnly bool   `json:",omitempty"` // and without device nodes and programs to run
}

// NIC is one wired interface for a guest, in port order: the first is eth0.
type NIC struct {
	PortID string
	Name   string // name inside the guest, e.g. eth0
	Link   vif.Link
}

// Info is what a driver knows about a guest now.
type Info struct {
	PowerState PowerState
	InitPID    int       // 0 when not running
	StartedAt  time.Time // zero when not running
	// Rebooting: the guest is down because it asked to be rebooted; whoever finds that starts it again.
	Rebooting bool
}

// Event tells that a guest changed its power state by itself or at our wish.
type Event struct {
	UUID       string
	PowerState PowerState
	At         time.Time
}

// Driver runs instances on this host.
//
// Every method may be repeated at any point and after a crash: it makes the stated
// condition true and succeeds if it already is. Destroy of an unknown instance
// succeeds; the other methods return ErrNotFound. All waits end with ctx or the
// given timeout. Methods of different instances never wait for each other; the
// caller serialises the methods of one instance.
type Driver interface {
	// Create records the spec and makes the instance's directory and configuration.
	// The root disk and the links are the caller's. ErrExists if another spec of that name is recorded.
	Create(ctx context.Context, spec Spec, rootfs string) error
	// Start runs the guest with these NICs; a running guest is left alone.
	// It returns once the guest's init runs, and never with a guest that shares a namespace with the host.
	// A failure carries the liblxc ERROR lines and leaves no process, cgroup or mount. A guest that fails late
	// takes its links with it (lxc issue 4409), which the error says: Plug again before the next Start.
	Start(ctx context.Context, uuid string, nics []NIC) error
	// Stop ends the guest: cleanly within timeout, asking again every retry interval, then by force. Zero timeout: by force at once.
	// The links are on the host again when it returns. ErrTimeout: a process sits in the kernel and does not die; ask again later.
	Stop(ctx context.Context, uuid string, timeout, retry time.Duration) error
	// Shutdown asks the guest to halt and waits at most timeout; false: it still runs.
	Shutdown(ctx context.Context, uuid string, timeout time.Duration) (bool, error)
	// Destroy stops by force and removes the record, configuration, log and console file.
	Destroy(ctx context.Context, uuid string) error
	// Pause freezes every process of the guest, Unpause lets them go on. ErrNotRunning for a guest that is shut down;
	// ErrTimeout: a process cannot be frozen, and the guest runs on.
	Pause(ctx context.Context, uuid string) error
	Unpause(ctx context.Context, uuid string) error
	// Info tells the state now, from the kernel and not from a cache.
	Info(ctx context.Context, uuid string) (Info, error)
	// ConsoleLog returns at most the last limit bytes of the guest's console, running or not.
	ConsoleLog(ctx context.Context, uuid string, limit int) ([]byte, error)
	// List returns the specs recorded on this host, and no foreign containers.
	List(ctx context.Context) ([]Spec, error)
	// Events delivers power state changes until ctx ends, when the channel is closed; those of guests started before this
	// process included. A guest that reboots itself makes no event. Every call has a stream of its own.
	Events(ctx context.Context) <-chan Event
	// Exec runs a command inside the guest and returns its exit status; output goes to the writers of cmd.
	// ErrNotRunning: the guest is shut down or paused. ErrTimeout: ctx ended first, and the command was killed.
	Exec(ctx context.Context, uuid string, cmd Command) (int, error)
	// Version describes the driver for ComputeNode: hypervisor_type and hypervisor_version.
	Version() (name string, version int)
}

// NICChanger is implemented by drivers that can change the interfaces of a guest that runs or is paused.
// Both methods give ErrNotRunning for a guest that is shut down: its next Start says what it has.
type NICChanger interface {
	// AttachNIC gives the guest one more interface under nic's name, up. One without a Link.Peer the guest holds already.
	// When it fails, the link may be in the guest: Unplug removes it from there too.
	AttachNIC(ctx context.Context, uuid string, nic NIC) error
	// DetachNIC prepares a guest for the loss of a port's interface. Unplug, which comes next, takes the interface away.
	DetachNIC(ctx context.Context, uuid, portID string) error
}

// LimitSetter is implemented by drivers that can change the limits of a guest while it runs.
type LimitSetter interface {
	// SetLimits records other limits and applies them to a guest that runs. ErrNeedsRestart: they are recorded, but this guest
	// cannot be given them, or not all of them, while it runs: it uses more than it is to have, or they take another configuration.
	SetLimits(ctx context.Context, uuid string, limits flavor.Limits) error
}

// Command is a program to run inside a guest as its root, with a clean environment.
type Command struct {
	Args  []string
	Env   []string
	Stdin io.Reader // nil: none
	// Terminal: Stdin is a terminal, an *os.File, that nobody has for his controlling one; it becomes the command's.
	Terminal bool
	Stdout   io.Writer // nil: discarded
	Stderr   io.Writer // nil: discarded
}
