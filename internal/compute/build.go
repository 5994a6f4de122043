package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
	"github.com/compute-agent/compute-agent/rpc"
)

var errNoUUID = errors.New("instance has no uuid")

// errDeleted cancels a build whose instance is being deleted.
var errDeleted = errors.New("instance is being deleted")

// buildEvent is the action event of a build.
const buildEvent = "_do_build_and_run_instance"

// buildAndRunInstance accepts a build and returns; the work goes on in the background
// (nova/compute/manager.py:build_and_run_instance). From here until it has ended the
// build is in the journal: a crash does not lose it.
func (m *Manager) buildAndRunInstance(ctx context.Context, args rpc.Args) (any, error) {
	r, err := decodeBuildRequest(args)
	if err != nil {
		return nil, err
	}
	if err := m.journalBuild(ctx, r); err != nil {
		return nil, err
	}
	m.background(ctx, func(ctx context.Context) { m.build(ctx, r, false) })
	return nil, nil
}

// build carries out one build from its turn in the queue to the end of its action
// event. resumed: an earlier process began it, and its traces were removed.
func (m *Manager) build(ctx context.Context, r *buildRequest, resumed bool) {
	inst := r.Instance
	ctx = reqctx.WithField(reqctx.WithField(ctx, "instance", inst.UUID), "method", "build_and_run_instance")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.trackBuild(inst.UUID, cancel)
	defer m.untrackBuild(inst.UUID)

	ctx, watch := stopwatch.With(ctx)
	err := protect(func() error { return m.buildInTurn(ctx, r, resumed) })
	if err != nil {
		reqctx.Log(ctx).WithError(err).WithFields(watch.Fields()).Error("build failed")
	}
	if err := m.forgetBuild(inst.UUID); err != nil {
		reqctx.Log(ctx).WithError(err).Error("build not removed from the journal")
	}
}

// buildInTurn waits for the instance's lock and a build slot, and builds.
func (m *Manager) buildInTurn(ctx context.Context, r *buildRequest, resumed bool) error {
	inst := r.Instance
	queued := stopwatch.Wait(ctx, stopwatch.Queue)
	unlock, err := m.locks.Lock(ctx, inst.UUID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.builds.Acquire(ctx, 1); err != nil {
		return err
	}
	defer m.builds.Release(1)
	queued()

	if !resumed {
		m.startEvent(ctx, inst.UUID, buildEvent)
	}
	failure := m.doBuild(ctx, r, resumed)
	if failure != nil {
		// What follows tells the control plane, and must not end with the build's own context.
		ctx = context.WithoutCancel(ctx)
		failure = m.failBuild(ctx, r, failure)
	}
	m.finishEvent(ctx, inst.UUID, buildEvent, failure)
	return failure
}

// doBuild takes an instance from scheduled to active. On failure nothing is left
// on the host; what the control plane must be told is failBuild's.
func (m *Manager) doBuild(ctx context.Context, r *buildRequest, resumed bool) error {
	inst := r.Instance
	inst.SystemMetadata = withRoles(inst.SystemMetadata, reqctx.From(ctx).Roles)

	// The claim and the first state are one save: from here on events, deletes
	// and audits know where the instance is.
	claim := m.Tracker.Ownership()
	maps.Copy(claim, map[string]any{
		"vm_state": object.VMStateBuilding, "task_state": nil, "system_metadata": inst.SystemMetadata,
	})
	expected := conductor.ExpectTask(object.TaskStateScheduling, "")
	if resumed {
		expected = conductor.ExpectTask(object.TaskStateScheduling, "", object.TaskStateNetworking, object.TaskStateBlockDeviceMapping, object.TaskStateSpawning)
	}
	if err := m.Conductor.SaveInstance(ctx, inst, claim, expected); err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "create", Phase: "start", Instance: inst, ImageName: r.Image.Name, BDMs: r.BDMs})
	if err := m.checkBuild(r); err != nil {
		return err
	}

	g, gctx := errgroup.WithContext(ctx)
	s := newSpawn(m, r)
	g.Go(func() error { return s.prepareNetwork(gctx) })
	g.Go(func() error { return s.prepareRoot(gctx) })
	g.Go(func() error { return m.Tracker.Claim(gctx, inst) })
	g.Go(func() error { return m.advanceBuild(gctx, r) })
	err := g.Wait()
	if err == nil {
		err = s.start(ctx)
	}
	if err == nil {
		err = m.finishBuild(ctx, r, s)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		s.abandon(context.WithoutCancel(ctx))
		return err
	}
	reqctx.Log(ctx).WithFields(stopwatch.Fields(ctx)).Info("instance spawned")
	return nil
}

// checkBuild refuses early what cannot be built here.
func (m *Manager) checkBuild(r *buildRequest) error {
	uuid := r.Instance.UUID
	if r.Instance.Flavor == nil {
		return exception.BuildAbort(uuid, "the request carries no flavor")
	}
	if len(r.AccelUUIDs) > 0 {
		return exception.BuildAbort(uuid, "accelerators are not supported by the lxc driver")
	}
	if r.Instance.TrustedCerts != nil && len(r.Instance.TrustedCerts.IDs) > 0 {
		return exception.BuildAbort(uuid, "image signature verification (trusted certificates) is not supported by the lxc driver")
	}
	if r.Instance.ConfigDrive != "" {
		return exception.BuildAbort(uuid, "a config drive is not supported by the lxc driver; use the metadata service")
	}
	for _, b := range r.BDMs {
		switch {
		case b.DestinationType == "volume":
			return exception.BuildAbort(uuid, "volumes are not supported by the lxc driver")
		case b.SourceType == "blank":
			return exception.BuildAbort(uuid, "ephemeral and swap disks are not supported by the lxc driver")
		}
	}
	if r.RequestedNetworks != nil {
		for _, n := range r.RequestedNetworks.Objects {
			if n.Tag != "" {
				return exception.BuildAbort(uuid, "device tagging is not supported by the lxc driver")
			}
		}
	}
	return nil
}

// defaultRootDevice is what nova names a root disk when neither image nor driver
// has a wish (nova/block_device.py:DEFAULT_ROOT_DEV_NAME's prefix).
const defaultRootDevice = "/dev/sda"

// advanceBuild moves the task state along as nova-compute does, while network and
// root disk are being prepared.
func (m *Manager) advanceBuild(ctx context.Context, r *buildRequest) error {
	// Others read the instance at the same time; the last save of the build gives it the whole row.
	inst := &object.Instance{Header: r.Instance.Clone(), ID: r.Instance.ID, UUID: r.Instance.UUID, RootDeviceName: r.Instance.RootDeviceName}
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"vm_state": object.VMStateBuilding, "task_state": object.TaskStateNetworking,
	}, conductor.ExpectTask(""))
	if err != nil {
		return err
	}
	device := inst.RootDeviceName
	if device == "" {
		device = defaultRootDevice
	}
	for _, b := range r.BDMs {
		if b.BootIndex != nil && *b.BootIndex == 0 && b.DeviceName != device {
			if err := m.Conductor.SaveBDM(ctx, b, map[string]any{"device_name": device}); err != nil {
				return err
			}
		}
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"root_device_name": device, "task_state": object.TaskStateBlockDeviceMapping,
	})
	if err != nil {
		return err
	}
	return m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"task_state": object.TaskStateSpawning,
	}, conductor.ExpectTask(object.TaskStateBlockDeviceMapping))
}

// finishBuild makes the instance active and says so.
func (m *Manager) finishBuild(ctx context.Context, r *buildRequest, s *spawn) error {
	inst := r.Instance
	if s.info != nil {
		m.setInfoCache(inst, s.info)
	}
	info, err := m.Driver.Info(ctx, inst.UUID)
	if err != nil {
		return err
	}
	changes := map[string]any{
		"power_state": int(info.PowerState), "vm_state": object.VMStateActive, "task_state": nil, "launched_at": object.Now(),
	}
	m.accessIPs(s.info, changes)
	if err := m.Conductor.SaveInstance(ctx, inst, changes, conductor.ExpectTask(object.TaskStateSpawning)); err != nil {
		return err
	}
	m.Tracker.BuildSucceeded()
	if m.opts.TrackInstanceChanges {
		if err := m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst}); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("scheduler not told of the instance")
		}
	}
	m.Notify.Instance(ctx, notify.Event{
		Action: "create", Phase: "end", Instance: inst, NetworkInfo: s.info, BDMs: r.BDMs,
		Extra: map[string]any{"message": "Success"},
	})
	return nil
}

// accessIPs sets the access addresses from the network named by default_access_ip_network_name.
func (m *Manager) accessIPs(info object.NetworkInfo, changes map[string]any) {
	if m.opts.DefaultAccessIPNetwork == "" {
		return
	}
	for i := range info {
		if info[i].Network.Label != m.opts.DefaultAccessIPNetwork {
			continue
		}
		for _, subnet := range info[i].Network.Subnets {
			for _, ip := range subnet.IPs {
				changes[map[int]string{4: "access_ip_v4", 6: "access_ip_v6"}[ip.Version]] = ip.Address
			}
		}
	}
	delete(changes, "")
}

// withRoles adds the caller's roles, which nova keeps with the instance for the metadata service.
func withRoles(system map[string]*string, roles []string) map[string]*string {
	out := maps.Clone(system)
	if out == nil {
		out = map[string]*string{}
	}
	joined := strings.Join(roles, ",")
	out["boot_roles"] = &joined
	return out
}

// trackBuild makes a build known to a delete that wants to overtake it.
func (m *Manager) trackBuild(uuid string, cancel context.CancelCauseFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cancels[uuid] = cancel
}

func (m *Manager) untrackBuild(uuid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.cancels, uuid)
}

// cancelBuild ends a build in progress, if there is one.
func (m *Manager) cancelBuild(uuid string, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cancel, ok := m.cancels[uuid]; ok {
		cancel(cause)
	}
}

// encode is json.Marshal for values that cannot fail.
func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // a programmer's mistake: only plain values are passed
	}
	return b
}
