package lxc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
)

const (
	// killTimeout bounds a forced stop; only processes in uninterruptible sleep take longer.
	killTimeout = 30 * time.Second
	// monitorGrace is how long a monitor may take after its guest's end to give back
	// links, unload an AppArmor profile and remove cgroups, before it is considered hung.
	monitorGrace = 20 * time.Second
	// defaultRetry is how often a guest is asked to halt if the caller does not say.
	defaultRetry = 10 * time.Second
	// blindRetry replaces a longer retry while the init shows no handler for the signal:
	// it is not up yet, and the kernel drops the signal, or it waits in sigtimedwait(2),
	// where no handler shows (busybox).
	blindRetry = 500 * time.Millisecond
	// stopPoll is how often a guest's end is looked for.
	stopPoll = 10 * time.Millisecond
)

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, uuid string, timeout, retry time.Duration) error {
	rec, err := d.load(uuid)
	if err != nil {
		return err
	}
	if _, err := d.lookup(rec.Spec.Name); errors.Is(err, driver.ErrExists) {
		return nil // someone else's container of that name, so ours does not run
	}
	if timeout > 0 {
		halted, err := d.shutdown(ctx, rec, timeout, retry)
		if err != nil {
			return fmt.Errorf("stop instance %s: %w", uuid, err)
		}
		if !halted {
			reqctx.Log(ctx).WithField("timeout", timeout.String()).Info("guest did not halt in time and is killed")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := d.clear(ctx, rec.Spec.Name); err != nil {
		return fmt.Errorf("stop instance %s: %w", uuid, err)
	}
	return d.unmark(rec, nicsChanged, rebootWanted)
}

// Shutdown implements driver.Driver.
func (d *Driver) Shutdown(ctx context.Context, uuid string, timeout time.Duration) (bool, error) {
	rec, err := d.load(uuid)
	if err != nil {
		return false, err
	}
	halted, err := d.shutdown(ctx, rec, timeout, 0)
	if err != nil {
		return false, fmt.Errorf("shut down instance %s: %w", uuid, err)
	}
	return halted, nil
}

// shutdown asks the guest to halt, again every retry, until it is gone or timeout passed.
func (d *Driver) shutdown(ctx context.Context, rec record, timeout, retry time.Duration) (halted bool, err error) {
	if retry <= 0 {
		retry = defaultRetry
	}
	name := rec.Spec.Name
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	g, err := d.lookup(name)
	if err != nil || !g.running() {
		return err == nil, err
	}
	if err := d.thaw(limit, name); err != nil { // a frozen guest handles no signal
		return false, err
	}
	kind := detectInit(rec.RootFS)
	for limit.Err() == nil {
		if g, err = d.settled(limit, name); err != nil {
			break
		}
		if !g.running() {
			return true, nil
		}
		patience := retry
		if len(kind.haltCommand) == 0 && !handles(g.init, kind.halt) {
			patience = min(retry, blindRetry)
		}
		round, cancel := context.WithTimeout(limit, patience)
		waited := stopwatch.Wait(ctx, stopwatch.Guest)
		err = d.askToHalt(round, rec, kind, g)
		if err == nil {
			err = d.awaitMonitorEnd(round, name, g)
		}
		waited()
		cancel()
		if err != nil && !errors.Is(err, driver.ErrTimeout) {
			break
		}
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if limit.Err() == nil {
		return false, err
	}
	g, err = d.lookup(name)
	return err == nil && !g.running(), err
}

// askToHalt sends the halt signal, or runs the init's halt command. An init that has ended needs no more: its
// monitor tidies up, which takes seconds where it has an AppArmor profile to unload and the host is busy.
func (d *Driver) askToHalt(ctx context.Context, rec record, kind initSystem, g guest) error {
	if g.init == 0 {
		return nil
	}
	if len(kind.haltCommand) > 0 {
		code, err := d.exec(ctx, rec, driver.Command{Args: kind.haltCommand})
		if err == nil && code == 0 {
			return nil
		}
	}
	return withProcess(g.init, func() bool { return inGroup(g.init, payload(rec.Spec.Name)) }, func(p *process) error {
		return p.signal(kind.halt)
	})
}

// thaw lets a frozen guest go on; one that is not frozen is left alone.
func (d *Driver) thaw(ctx context.Context, name string) error {
	if !d.cgroups.frozen(payload(name)) {
		return nil
	}
	return d.cgroups.freeze(ctx, payload(name), false)
}

// clear ends whatever runs under a container's name and removes its cgroups. It needs
// no help of the monitor, so it works when that hangs or was killed.
func (d *Driver) clear(ctx context.Context, name string) error {
	g, err := d.lookup(name)
	if err != nil {
		return err
	}
	group := payload(name)
	pids, err := d.cgroups.procs(group)
	if err != nil {
		return err
	}
	if g.running() || len(pids) > 0 {
		if err := d.kill(ctx, name, g); err != nil {
			return err
		}
	}
	// A group is busy for a moment after its last process is gone.
	var busy error
	err = waitFor(ctx, stopPoll, func() bool {
		busy = errors.Join(d.cgroups.remove(group), d.cgroups.remove(monitor(name)))
		return busy == nil
	})
	if err != nil {
		return fmt.Errorf("remove cgroups: %w: %w", err, busy)
	}
	return errors.Join(d.releaseWriteback(name), d.unloadProfile(name))
}

// kill ends a guest by force and waits until its monitor has tidied up.
// ErrTimeout: a process does not die, it sits in the kernel.
func (d *Driver) kill(ctx context.Context, name string, g guest) error {
	group := payload(name)
	d.cgroups.forbidForks(group)
	// The kernel ends everything in a pid namespace with its init. Thawing comes after the
	// signal, so that nothing in the guest runs again; v1 delivers it only then.
	if err := d.killAll(name, g); err != nil {
		return err
	}
	if err := d.thaw(ctx, name); err != nil {
		return err
	}
	if g.running() {
		if err := d.awaitMonitor(ctx, name, g); err != nil {
			return err
		}
	}
	return waitFor(ctx, stopPoll, func() bool {
		pids, err := d.cgroups.procs(group)
		if err != nil || len(pids) == 0 {
			return err == nil
		}
		return d.killAll(name, guest{}) != nil // whoever was attached from outside
	})
}

// killAll sends SIGKILL to a guest's init and to all processes of its group.
func (d *Driver) killAll(name string, g guest) error {
	group := payload(name)
	if g.init != 0 {
		if err := sigkill(g.init, func() bool { return inGroup(g.init, group) }); err != nil {
			return err
		}
	}
	if d.cgroups.kill(group) {
		return nil
	}
	pids, err := d.cgroups.procs(group)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := sigkill(pid, func() bool { return inGroup(pid, group) }); err != nil {
			return err
		}
	}
	return nil
}

// awaitMonitor waits for a monitor whose guest was killed to end, which returns the
// links. One that hangs is killed in turn; its links are lost with the namespace then.
func (d *Driver) awaitMonitor(ctx context.Context, name string, g guest) error {
	defer stopwatch.Wait(ctx, stopwatch.Guest)()
	if g.init != 0 {
		if err := awaitEnd(ctx, g.init, func() bool { return inGroup(g.init, payload(name)) }); err != nil {
			return fmt.Errorf("the guest's init does not die: %w", err)
		}
	}
	grace, cancel := context.WithTimeout(ctx, monitorGrace)
	defer cancel()
	if d.awaitMonitorEnd(grace, name, g) == nil {
		return nil
	}
	reqctx.Log(ctx).WithField("pid", g.monitor).Warning("container monitor hangs and is killed")
	if err := sigkill(g.monitor, func() bool { return inGroup(g.monitor, monitor(name)) }); err != nil {
		return err
	}
	return d.awaitMonitorEnd(ctx, name, g)
}

func (d *Driver) awaitMonitorEnd(ctx context.Context, name string, g guest) error {
	// By its title: it leaves its cgroups a moment before it ends.
	return awaitEnd(ctx, g.monitor, func() bool { return cmdline(g.monitor) == d.title(name) })
}

func sigkill(pid int, check func() bool) error {
	return withProcess(pid, check, func(p *process) error { return p.signal(unix.SIGKILL) })
}
