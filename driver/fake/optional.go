package fake

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/compute-agent/compute-agent/driver"
)

var (
	_ driver.Suspender     = (*Driver)(nil)
	_ driver.Inspector     = (*Driver)(nil)
	_ driver.Sampler       = (*Driver)(nil)
	_ driver.ConsoleOpener = (*Driver)(nil)
	_ driver.RootOpener    = (*Driver)(nil)
)

// Suspend implements driver.Suspender.
func (d *Driver) Suspend(ctx context.Context, uuid string) error {
	return d.freeze(ctx, "Suspend", uuid, driver.PowerStateSuspended)
}

// Resume implements driver.Suspender.
func (d *Driver) Resume(ctx context.Context, uuid string) error {
	return d.freeze(ctx, "Resume", uuid, driver.PowerStateRunning)
}

// SetUsage says what a guest has used.
func (d *Driver) SetUsage(uuid string, u driver.Usage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.instances[uuid]; i != nil {
		i.Usage = u
	}
}

// Usage implements driver.Inspector.
func (d *Driver) Usage(ctx context.Context, uuid string) (driver.Usage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.running(ctx, "Usage", uuid)
	if err != nil {
		return driver.Usage{}, err
	}
	return i.Usage, nil
}

// Sample implements driver.Sampler with the usage alone.
func (d *Driver) Sample(ctx context.Context, uuid string) (driver.Sample, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.running(ctx, "Sample", uuid)
	if err != nil {
		return driver.Sample{}, err
	}
	return driver.Sample{Usage: i.Usage, Tasks: int64(i.Usage.Processes)}, nil
}

// SetRoot gives a guest a root directory.
func (d *Driver) SetRoot(uuid, dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.instances[uuid]; i != nil {
		i.Root = dir
	}
}

// OpenRoot implements driver.RootOpener.
func (d *Driver) OpenRoot(ctx context.Context, uuid string) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.running(ctx, "OpenRoot", uuid)
	if err != nil {
		return nil, err
	}
	if i.Root == "" {
		return nil, fmt.Errorf("open root of instance %s: %w", uuid, driver.ErrUnsupported)
	}
	return os.Open(i.Root)
}

// OpenConsole implements driver.ConsoleOpener: what is typed is echoed, to the console log too.
func (d *Driver) OpenConsole(ctx context.Context, uuid string) (io.ReadWriteCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, err := d.running(ctx, "OpenConsole", uuid)
	if err != nil {
		return nil, err
	}
	c := &console{d: d, i: i, run: i.InitPID, at: i.dropped + len(i.Console)}
	c.changed = sync.NewCond(&d.mu)
	d.consoles[c] = true
	return c, nil
}

// console is an open console of a guest.
type console struct {
	d       *Driver
	i       *Instance
	run     int        // the init that it belongs to
	changed *sync.Cond // of d.mu

	at     int // guarded by d.mu, as is closed
	closed bool
}

// Read implements io.Reader.
func (c *console) Read(p []byte) (int, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, os.ErrClosed
		case c.at < c.i.dropped+len(c.i.Console):
			c.at = max(c.at, c.i.dropped)
			n := copy(p, c.i.Console[c.at-c.i.dropped:])
			c.at += n
			return n, nil
		case c.i.InitPID != c.run:
			return 0, io.EOF
		}
		c.changed.Wait()
	}
}

// Write implements io.Writer.
func (c *console) Write(p []byte) (int, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed || c.i.InitPID != c.run {
		return 0, io.ErrClosedPipe
	}
	c.d.print(c.i, p)
	return len(p), nil
}

// Close implements io.Closer.
func (c *console) Close() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed {
		return os.ErrClosed
	}
	c.closed = true
	delete(c.d.consoles, c)
	c.changed.Broadcast()
	return nil
}

// wakeConsoles lets the readers of consoles look again. d.mu is held.
func (d *Driver) wakeConsoles() {
	for c := range d.consoles {
		c.changed.Broadcast()
	}
}

// running finds an instance whose guest is not shut down. d.mu is held.
func (d *Driver) running(ctx context.Context, method, uuid string) (*Instance, error) {
	i, err := d.find(ctx, method, uuid)
	if err != nil {
		return nil, err
	}
	if i.InitPID == 0 {
		return nil, fmt.Errorf("%s of instance %s: %w", method, uuid, driver.ErrNotRunning)
	}
	return i, nil
}
