package fake

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/compute-agent/compute-agent/driver"
)

var (
	_ driver.Suspender     = (*Driver)(nil)
	_ driver.Inspector     = (*Driver)(nil)
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
	if i.console != nil {
		return nil, fmt.Errorf("open console of instance %s: %w", uuid, driver.ErrExists)
	}
	r, w := io.Pipe()
	i.console = &console{d: d, i: i, r: r, w: w, typed: make(chan []byte, typedBuffer), closed: make(chan struct{})}
	go i.console.echo()
	return i.console, nil
}

// typedBuffer is how many writes wait for a slow reader before a typist does.
const typedBuffer = 64

// console is an open console of a guest.
type console struct {
	d      *Driver
	i      *Instance
	r      *io.PipeReader
	w      *io.PipeWriter
	typed  chan []byte
	closed chan struct{}
}

func (c *console) echo() {
	for {
		select {
		case b := <-c.typed:
			if _, err := c.w.Write(b); err != nil {
				return
			}
		case <-c.closed:
			return
		}
	}
}

// Read implements io.Reader.
func (c *console) Read(p []byte) (int, error) { return c.r.Read(p) }

// Write implements io.Writer.
func (c *console) Write(p []byte) (int, error) {
	b := append([]byte(nil), p...)
	c.d.mu.Lock()
	c.i.Console = append(c.i.Console, b...)
	c.d.mu.Unlock()
	select {
	case c.typed <- b:
		return len(p), nil
	case <-c.closed:
		return 0, io.ErrClosedPipe
	}
}

// Close implements io.Closer.
func (c *console) Close() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.i.console != c {
		return os.ErrClosed
	}
	c.end()
	return nil
}

// end closes the console, as the end of its guest does. d.mu is held.
func (c *console) end() {
	if c.i.console != c {
		return
	}
	c.i.console = nil
	close(c.closed)
	_ = c.w.Close()
	_ = c.r.Close()
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
