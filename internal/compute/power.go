package compute

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// powerState asks the driver; an instance that this host does not have has none
// (nova/compute/manager.py:_get_power_state).
func (m *Manager) powerState(ctx context.Context, uuid string) (driver.PowerState, error) {
	info, err := m.Driver.Info(ctx, uuid)
	if errors.Is(err, driver.ErrNotFound) {
		return driver.PowerStateNoState, nil
	}
	return info.PowerState, err
}

// isOff tells that a power state means "not running".
func isOff(p driver.PowerState) bool {
	return p == driver.PowerStateNoState || p == driver.PowerStateShutdown || p == driver.PowerStateCrashed
}

// stopInstance stops a guest: cleanly within the time-out, unless the caller wants it
// at once (nova/compute/manager.py:stop_instance).
func (m *Manager) stopInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	clean, err := cleanShutdown(args)
	if err != nil {
		return nil, err
	}
	return nil, m.stop(ctx, inst, clean)
}

// cleanShutdown tells whether the guest is to be asked before it is stopped, as it is unless the caller says otherwise.
func cleanShutdown(args rpc.Args) (clean bool, err error) {
	clean = true
	if _, ok := args["clean_shutdown"]; ok {
		err = args.Decode("clean_shutdown", &clean)
	}
	return clean, err
}

func (m *Manager) stop(ctx context.Context, inst *object.Instance, clean bool) error {
	before, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	expected := []string{object.TaskStatePoweringOff}
	if isOff(before) {
		// A guest that stopped by itself may have lost its task state to the periodic sync.
		expected = append(expected, "")
	}
	m.notifyInstance(ctx, inst, "power_off", "start")
	timeout := time.Duration(0)
	if clean {
		if err := m.Conductor.LoadInstance(ctx, inst, "system_metadata"); err != nil {
			return err
		}
		timeout = m.shutdownTimeout(inst)
	}
	if err := m.powerOffOrLeave(ctx, inst.UUID, timeout); err != nil {
		return err
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateStopped, "task_state": nil,
	}, conductor.ExpectTask(expected...))
	if err != nil {
		return err
	}
	m.notifyInstance(ctx, inst, "power_off", "end")
	return nil
}

// powerOff stops the guest and unmounts its disks. The ports stay plugged: a stopped
// server keeps its place in the network.
func (m *Manager) powerOff(ctx context.Context, uuid string, timeout time.Duration) error {
	return m.off(ctx, uuid, m.Driver.Stop(ctx, uuid, timeout, m.opts.ShutdownRetryInterval))
}

// powerOffOrLeave is powerOff for operations that the next start of the agent takes up: the agent's end does not wait
// until the guest halts.
func (m *Manager) powerOffOrLeave(ctx context.Context, uuid string, timeout time.Duration) error {
	if timeout == 0 {
		return m.powerOff(ctx, uuid, 0)
	}
	return m.off(ctx, uuid, m.await(ctx, func(ctx context.Context) error {
		return m.Driver.Stop(ctx, uuid, timeout, m.opts.ShutdownRetryInterval)
	}))
}

// powerOffToStart stops a guest that is started again at once. A healthy root disk stays mounted: to unmount it means to wait until the host's disk has
// all that the guest has written. One that the kernel has met errors in is read-only until it is mounted anew.
func (m *Manager) powerOffToStart(ctx context.Context, uuid string) error {
	if err := m.Driver.Stop(ctx, uuid, 0, m.opts.ShutdownRetryInterval); err != nil && !errors.Is(err, driver.ErrNotFound) {
		return err
	}
	if roots, ok := m.Roots.(storage.HealthChecker); ok {
		healthy, err := roots.Healthy(ctx, uuid)
		if err != nil {
			reqctx.Log(ctx).WithError(err).Warning("cannot tell whether the root disk has errors; it is mounted anew")
		}
		if healthy {
			return m.putAway(ctx, uuid)
		}
	}
	return m.off(ctx, uuid, nil)
}

// off puts away what a guest that was stopped leaves.
func (m *Manager) off(ctx context.Context, uuid string, err error) error {
	if err != nil && !errors.Is(err, driver.ErrNotFound) {
		return err
	}
	return errors.Join(m.putAway(ctx, uuid), m.Roots.Unmount(ctx, uuid))
}

// putAway is off but for the root disk.
func (m *Manager) putAway(ctx context.Context, uuid string) error {
	m.replug(ctx, uuid)
	if err := m.Drives.Unmount(ctx, uuid); err != nil {
		return err
	}
	rec, _, err := m.record(uuid)
	if err != nil {
		return err
	}
	if rec.rescued() {
		if err := m.Roots.Unmount(ctx, rec.Rescue.Root.InstanceID); err != nil {
			return err
		}
	}
	return errors.Join(m.Ephemeral.Unmount(ctx, uuid), m.Shares.Unmount(uuid))
}

// startInstance starts a stopped guest (nova/compute/manager.py:start_instance).
func (m *Manager) startInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	m.notifyInstance(ctx, inst, "power_on", "start")
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return nil, networkError(inst, err)
	}
	if err := m.powerOn(ctx, inst, info); err != nil {
		return nil, err
	}
	if err := m.saveStarted(ctx, inst); err != nil {
		return nil, err
	}
	m.notifyInstance(ctx, inst, "power_on", "end")
	return nil, nil
}

// saveStarted ends a start. One of a server that was shelved and not taken off its host ends the shelving.
func (m *Manager) saveStarted(ctx context.Context, inst *object.Instance) error {
	if inst.VMState != object.VMStateShelved {
		return m.saveRunning(ctx, inst, conductor.ExpectTask(object.TaskStatePoweringOn))
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "system_metadata"); err != nil {
		return err
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	image := inst.System("shelved_image_id")
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateActive, "task_state": nil, "system_metadata": withoutShelved(inst.SystemMetadata),
	}, conductor.ExpectTask(object.TaskStatePoweringOn))
	if err != nil {
		return err
	}
	m.deleteShelvedImage(ctx, image)
	return nil
}

// saveRunning stores that an instance is active, with the power state that it has.
func (m *Manager) saveRunning(ctx context.Context, inst *object.Instance, expect ...conductor.Expect) error {
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateActive, "task_state": nil,
	}, expect...)
}

// powerOn plugs the ports, mounts the root and starts the guest; what is in place
// already stays as it is, so a guest finds its network again after a reboot of the host too.
func (m *Manager) powerOn(ctx context.Context, inst *object.Instance, info object.NetworkInfo) error {
	rec, ok, err := m.record(inst.UUID)
	if err != nil {
		return err
	}
	if !ok {
		return exception.InstanceNotFound(inst.UUID)
	}
	if inst.Flavor != nil {
		rec.Bandwidth = m.bandwidth(inst) // another one since a resize
	}
	rec.describe(inst)
	rec.setVIFs(vifsOfInfo(inst.UUID, info))
	rec.Hot = false
	if err := m.saveRecord(rec); err != nil {
		return err
	}
	return m.runRecorded(ctx, rec)
}

// runRecorded starts a guest from its record alone. Every start comes through here, but a new server's first (spawn.start), which
// is removed from the host if it fails.
func (m *Manager) runRecorded(ctx context.Context, rec record) error {
	return m.orOff(ctx, rec.UUID, func() error {
		var nics []driver.NIC
		g, gctx := errgroup.WithContext(ctx) // links and disks know nothing of each other
		g.Go(func() (err error) {
			nics, err = m.plugRecorded(gctx, rec)
			return err
		})
		g.Go(func() error { return m.mountRecorded(gctx, rec) })
		if err := g.Wait(); err != nil {
			return err
		}
		return m.Driver.Start(ctx, rec.UUID, nics)
	})
}

// orOff does what a guest's start consists of, or the part of it that mounts something. If it fails the server is off, and nothing
// of it stays mounted, whoever mounted it: not when the agent leaves, whose next start goes on from here, nor
// when the guest runs in spite of the failure. It may be nested.
func (m *Manager) orOff(ctx context.Context, uuid string, start func() error) error {
	failure := start()
	if failure == nil || leaving(ctx, failure) {
		return failure
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if now, err := m.powerState(ctx, uuid); err != nil || !isOff(now) {
		return failure
	}
	if err := m.powerOff(ctx, uuid, 0); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("disks of a server that did not start stay mounted; its next start or stop deals with them")
	}
	return failure
}

func (m *Manager) plugRecorded(ctx context.Context, rec record) ([]driver.NIC, error) {
	nics := make([]driver.NIC, 0, len(rec.VIFs))
	for _, v := range rec.VIFs {
		link, err := m.Plugger.Plug(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("plug port %s: %w", v.PortID, err)
		}
		nics = append(nics, driver.NIC{PortID: v.PortID, Name: rec.nicName(v.PortID), Link: link})
	}
	return nics, nil
}

func (m *Manager) mountRecorded(ctx context.Context, rec record) error {
	rootfs, err := m.mountDisks(ctx, rec)
	if err != nil {
		return err
	}
	if rec.rescued() { // in the instance's place, with files of its own
		if _, err := m.Roots.Mount(ctx, rec.Rescue.Root); err != nil {
			return fmt.Errorf("mount rescue disk: %w", err)
		}
	} else if err := m.applyStartTemplates(ctx, rec, rootfs); err != nil {
		return err
	}
	if err := m.Drives.Mount(rec.UUID); err != nil {
		return err
	}
	return m.mountShares(rec)
}

// savePower ends a power operation: its new state, if the task state is still ours, and its notification.
func (m *Manager) savePower(ctx context.Context, inst *object.Instance, vmState, task, action string) error {
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": vmState, "task_state": nil,
	}, conductor.ExpectTask(task))
	if err != nil {
		return err
	}
	m.notifyInstance(ctx, inst, action, "end")
	return nil
}

// shutdownTimeout is how long a clean stop may take: the image's os_shutdown_timeout,
// else [DEFAULT] shutdown_timeout (nova/compute/manager.py:_get_power_off_values).
func (m *Manager) shutdownTimeout(inst *object.Instance) time.Duration {
	if seconds, err := strconv.Atoi(inst.System("image_os_shutdown_timeout")); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second
	}
	return m.opts.ShutdownTimeout
}
