package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Aside is a network namespace in which a host's agent sees links of its own, as on a machine of its own, and reaches the services of the
// control plane on the loopback as before.
type Aside struct {
	Name string // of the network namespace

	listeners []net.Listener
	work      sync.WaitGroup
}

// NewAside makes one; ports are those of the services.
func NewAside(ctx context.Context, name string, ports []int) (a *Aside, err error) {
	a = &Aside{Name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close(ctx))
		}
	}()
	if err := run(ctx, "netns", "add", name); err != nil {
		return a, err
	}
	if err := a.Run(ctx, "link", "set", "lo", "up"); err != nil {
		return a, err
	}
	for _, port := range ports {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := a.listen(ctx, address)
		if err != nil {
			return a, err
		}
		a.listeners = append(a.listeners, l)
		a.work.Go(func() { a.forward(ctx, l, address) })
	}
	return a, nil
}

// Run runs a command of ip(8) in the namespace.
func (a *Aside) Run(ctx context.Context, args ...string) error {
	return run(ctx, append([]string{"-n", a.Name}, args...)...)
}

// Links are the names of the namespace's links.
func (a *Aside) Links() (found []string, err error) {
	err = a.Within(func() error {
		found, err = links()
		return err
	})
	return found, err
}

// Close removes the namespace with the links that are in it.
func (a *Aside) Close(ctx context.Context) error {
	for _, l := range a.listeners {
		_ = l.Close() // it ends the forwarding
	}
	a.work.Wait()
	return run(ctx, "netns", "del", a.Name)
}

func run(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, out)
	}
	return nil
}

func (a *Aside) listen(ctx context.Context, address string) (l net.Listener, err error) {
	err = a.Within(func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		return err
	})
	return l, err
}

// Within calls do on a thread that is in the namespace, and ends with it. A process that do starts is in there, too, with this
// process's mounts.
func (a *Aside) Within(do func() error) error {
	fd, err := unix.Open(filepath.Join("/run/netns", a.Name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", a.Name, err)
	}
	defer unix.Close(fd)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", a.Name, err)
			return
		}
		done <- do()
	}()
	return <-done
}

// forward connects whoever connects in the namespace with the same address outside, until the listener is closed. A connection
// ends when either side ends it.
func (a *Aside) forward(ctx context.Context, l net.Listener, address string) {
	var open sync.WaitGroup
	defer open.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		inside, err := l.Accept()
		if err != nil {
			return
		}
		outside, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			_ = inside.Close() // the other side sees that the service is away
			continue
		}
		end := sync.OnceFunc(func() {
			_ = inside.Close()
			_ = outside.Close()
		})
		stop := context.AfterFunc(ctx, end)
		for _, way := range [][2]net.Conn{{inside, outside}, {outside, inside}} {
			open.Go(func() {
				defer stop()
				defer end()
				_, _ = io.Copy(way[0], way[1])
			})
		}
	}
}
