package compute

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
	"github.com/compute-agent/compute-agent/rpc"
)

// errBuildTimeout ends a build that takes longer than instance_build_timeout.
var errBuildTimeout = errors.New("the server was not built within instance_build_timeout")

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
		if checkUUID(r.Instance) != nil {
			return nil, err
		}
		r.refused = abortBecause(r.Instance.UUID, err) // nobody waits for an answer: the instance must tell
	}
	m.startBuild(ctx, r, journal.NewEntry(ctx, journal.BuildMethod, args))
	return nil, nil
}

// startBuild accepts a build. What cannot be journaled is not begun; another host may do better.
func (m *Manager) startBuild(ctx context.Context, r *buildRequest, entry journal.Entry) {
	op := &journal.Operation{UUID: r.Instance.UUID, Method: journal.BuildMethod, OwnPorts: r.ownPorts()}
	m.accept(ctx, op, entry, func(ctx context.Context, unwritten error) bool {
		if r.refused == nil {
			r.refused = unwritten
		}
		return m.build(ctx, r)
	})
}

// build carries out one build from its turn in the queue to the end of its action event.
// It tells whether the outcome, good or bad, is where it belongs; if not, the next
// start of the agent takes the build up again.
func (m *Manager) build(ctx context.Context, r *buildRequest) (settled bool) {
	ctx, watch := stopwatch.With(ctx)
	err := protect(ctx, func() (err error) {
		settled, err = m.buildInTurn(ctx, r)
		return err
	})
	if err != nil {
		reqctx.Log(ctx).WithError(err).WithFields(watch.Fields()).Error("build failed")
	}
	return settled
}

// buildInTurn waits for the instance's lock and a build slot, and builds.
func (m *Manager) buildInTurn(ctx context.Context, r *buildRequest) (settled bool, err error) {
	inst := r.Instance
	queued := stopwatch.Wait(ctx, stopwatch.Queue)
	unlock, err := m.inTurn(ctx, operation{again: true}, inst.UUID)
	if err != nil {
		return m.overtaken(ctx, err)
	}
	defer unlock()
	if err := m.await(ctx, func(ctx context.Context) error { return m.builds.Acquire(ctx, 1) }); err != nil {
		return m.overtaken(ctx, err)
	}
	defer m.builds.Release(1)
	queued()

	if r.resumed {
		again, err := m.resumable(ctx, r)
		switch {
		case errors.Is(context.Cause(ctx), errDeleted):
			return m.overtaken(ctx, err)
		case !again:
			return err == nil, err
		}
	} else {
		m.startEvent(ctx, inst.UUID, buildEvent)
	}
	failure := r.refused
	if failure == nil {
		failure = m.doBuild(ctx, r)
	}
	if handedBack(ctx, failure) {
		return false, nil
	}
	if failure != nil {
		// What follows tells the control plane, and must not end with the build's own context.
		ctx = context.WithoutCancel(ctx)
		failure, err = m.failBuild(ctx, r, failure)
	}
	m.finishEvent(ctx, inst.UUID, buildEvent, failure)
	return err == nil, errors.Join(failure, err)
}

// overtaken ends a build that a delete cancelled while it waited: nothing was done, and
// what an earlier process did the delete removes.
func (m *Manager) overtaken(ctx context.Context, err error) (settled bool, failure error) {
	if errors.Is(context.Cause(ctx), errDeleted) {
		reqctx.Log(ctx).Info("build cancelled before it began because the instance is being deleted")
		return true, nil
	}
	if handedBack(ctx, err) {
		return false, nil
	}
	return false, fmt.Errorf("wait for the build's turn: %w", err)
}

// doBuild takes an instance from scheduled to active. On failure nothing is left
// on the host; what the control plane must be told is failBuild's.
func (m *Manager) doBuild(ctx context.Context, r *buildRequest) error {
	ctx, cancel := withTimeout(ctx, m.opts.InstanceBuildTimeout, errBuildTimeout)
	defer cancel()
	inst := r.Instance
	if err := m.claimInstance(ctx, r); err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "create", Phase: "start", Instance: unclaimed(inst), ImageName: r.Image.Name, BDMs: r.BDMs})
	if err := m.checkBuild(r); err != nil {
		return err
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "trusted_certs"); err != nil { // which nova-api sends along
		return err
	}
	s := newSpawn(m, r)
	err := protect(ctx, func() error { return m.spawnInstance(ctx, r, s) })
	if err == nil {
		reqctx.Log(ctx).WithFields(stopwatch.Fields(ctx)).Info("instance spawned")
		return nil
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errBuildTimeout):
		err = abortBecause(inst.UUID, cause)
	case cause != nil:
		err = cause
	case exception.Is(err, "UnexpectedTaskStateError") && !isGone(err):
		// The instance is ours by now, and half built: nobody else ends it
		// (nova/compute/manager.py:_build_resources).
		err = abortBecause(inst.UUID, err)
	}
	if left := s.abandon(ctx); left != nil && !isGone(err) {
		// A guest that may still run here must not be built a second time elsewhere.
		err = abortBecause(inst.UUID, fmt.Errorf("%w; not removed from the host: %w", err, left))
	}
	return err
}

// claimInstance stores that the instance is being built here. Claim and first state are
// one save: from here on events, deletes and audits know where the instance is.
func (m *Manager) claimInstance(ctx context.Context, r *buildRequest) error {
	inst := r.Instance
	inst.SystemMetadata = withRoles(inst.SystemMetadata, reqctx.From(ctx).Roles)
	claim := m.Tracker.Ownership()
	maps.Copy(claim, map[string]any{
		"vm_state": object.VMStateBuilding, "task_state": nil, "system_metadata": inst.SystemMetadata,
	})
	expected := conductor.ExpectTask(object.TaskStateScheduling, "")
	if r.resumed {
		expected = conductor.ExpectTask(append([]string{""}, buildTasks...)...)
	}
	return m.Conductor.SaveInstance(ctx, inst, claim, expected)
}

// unclaimed is the instance as its start is told: nova-compute tells it before it claims, which here is one save with the first state
// (nova/compute/manager.py:_build_and_run_instance).
func unclaimed(inst *object.Instance) *object.Instance {
	before := *inst
	before.Header = inst.Clone()
	before.Host, before.Node = "", ""
	return &before
}

// spawnInstance does what takes long side by side, and then starts the guest.
func (m *Manager) spawnInstance(ctx context.Context, r *buildRequest, s *spawn) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, step := range []func(context.Context) error{
		s.prepareNetwork,
		s.prepareRoot,
		func(ctx context.Context) error { return m.Tracker.Claim(ctx, r.Instance) },
		func(ctx context.Context) error { return m.advanceBuild(ctx, r) },
	} {
		g.Go(func() error { return protect(gctx, func() error { return step(gctx) }) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.tellDevices(ctx); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	return m.finishBuild(ctx, r, s)
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
	for _, b := range r.BDMs {
		if b.DestinationType == "volume" {
			return exception.BuildAbort(uuid, "volumes are not supported by the lxc driver")
		}
	}
	if _, err := m.localDisks(r.Instance, r.BDMs); err != nil {
		return err
	}
	return nil
}

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
		device = object.DefaultRootDevice
	}
	if err := m.nameDisks(ctx, r.BDMs, device); err != nil {
		return err
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
	if inst.ConfigDrive == "" && m.opts.ConfigDrive.Wanted(inst, r.Image.Property(metadata.ImageConfigDrive)) {
		changes["config_drive"] = "True" // the row says what the guest has (nova/virt/configdrive.py:update_instance)
	}
	if err := m.Conductor.SaveInstance(ctx, inst, changes, conductor.ExpectTask(object.TaskStateSpawning)); err != nil {
		return err
	}
	m.Tracker.BuildSucceeded()
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst})
	})
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
