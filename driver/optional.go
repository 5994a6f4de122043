package driver

import (
	"context"
	"io"
	"os"
	"time"
)

// Suspender is a Driver that can lay a guest aside for long. A guest is suspended only as long as
// its processes live: after a reboot of the host it is shut down like any other.
type Suspender interface {
	// Suspend freezes every process of the guest, gives its memory back to the host as far as swap space takes
	// it, and makes Info say PowerStateSuspended, over a restart of the agent too. Errors are those of Pause.
	// Pause and Unpause of a suspended guest end its suspension.
	Suspend(ctx context.Context, uuid string) error
	// Resume lets a suspended or paused guest go on; one that runs is left alone. ErrNotRunning: it is shut down.
	Resume(ctx context.Context, uuid string) error
}

// Inspector is a Driver that counts what its guests use.
type Inspector interface {
	// Usage counts what a guest has used since its start. ErrNotRunning: it is shut down.
	Usage(ctx context.Context, uuid string) (Usage, error)
}

// Usage is what a guest has used since its start. What the host does not count is zero.
type Usage struct {
	CPUTime      time.Duration // of all CPUs together
	MemoryUsed   int64         // bytes, without the page cache that could go
	MemoryCache  int64         // bytes of page cache
	SwapUsed     int64         // bytes
	ReadBytes    int64         // from block devices
	ReadRequests int64
	// WriteBytes and WriteRequests lag behind what the guest wrote by what is not on the disk yet.
	WriteBytes    int64
	WriteRequests int64
	Processes     int
}

// Sampler is a Driver that tells what its guests use as often as a monitoring system asks.
type Sampler interface {
	// Sample counts what a guest has used since its start, and what it waits for. It costs some reads of files of the kernel, however
	// many processes the guest has. ErrNotRunning: it is shut down.
	Sample(ctx context.Context, uuid string) (Sample, error)
}

// Sample is what a guest uses. What the host does not count is zero, or missing.
type Sample struct {
	Usage       Usage         // without Processes
	Tasks       int64         // processes and their threads
	Throttled   time.Duration // for which the guest's limit kept it from the CPUs, or one of them
	MemoryLimit int64         // bytes; 0: none
	OOMKills    int64         // processes that the kernel killed for want of memory
	Pressure    []Pressure    // of cpu, io and memory; none on a kernel or with cgroups that do not tell
}

// Pressure is how long some process of a guest had to wait for a resource (Documentation/accounting/psi.rst).
type Pressure struct {
	Resource string        // cpu, io or memory
	Average  float64       // share of the last 10 s, from 0 to 1
	Total    time.Duration // since the guest's start
}

// ConsoleOpener is a Driver whose guests have a console that can be typed at.
type ConsoleOpener interface {
	// OpenConsole connects with the console of a running guest: Read gives what the guest writes from now on, Write is
	// typed. Several may be connected, and none delays the guest: a reader that is very slow misses some. The console log
	// goes on. A connection lasts over reboots inside; Read ends when the guest has stopped. ErrNotRunning.
	OpenConsole(ctx context.Context, uuid string) (io.ReadWriteCloser, error)
}

// RootOpener is a Driver that gives access to the files of its running guests.
type RootOpener interface {
	// OpenRoot returns the root directory of a running guest as the guest's own processes see it. Every name below it,
	// links among them, is the guest's to choose: resolve names beneath it only. ErrNotRunning: it is shut down;
	// ErrUnsupported: it has no files.
	OpenRoot(ctx context.Context, uuid string) (*os.File, error)
}
