package compute

import (
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// unshelveInstance builds an offloaded instance anew on this host, from the image that shelving made and
// with the ports that it had (nova/compute/manager.py:unshelve_instance). A server that was only shelved
// is started by start_instance.
func (m *Manager) unshelveInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	u := &unshelving{m: m, inst: inst}
	var image *object.Image
	for name, into := range map[string]any{"image": &image, "accel_uuids": &u.accelerators} {
		if _, ok := args[name]; !ok {
			continue
		}
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	if image != nil {
		u.image = *image
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "info_cache", "metadata", "system_metadata", "trusted_certs"); err != nil {
		return nil, err
	}
	u.imageRef, u.keyData, u.autoDisk = inst.ImageRef, inst.KeyData, inst.AutoDiskConfig
	if inst.ImageRef == u.image.ID && inst.System("image_base_image_ref") != "" { // an interrupted attempt
		u.imageRef = inst.System("image_base_image_ref")
	}
	if err := u.run(ctx); err != nil {
		return nil, u.failed(ctx, err)
	}
	return nil, nil
}

// unshelving is one unshelve under way.
type unshelving struct {
	m            *Manager
	inst         *object.Instance
	image        object.Image
	accelerators []string
	bdms         []*object.BlockDeviceMapping
	spawn        *spawn

	imageRef, keyData string // what the instance has before and after
	autoDisk          bool
}

func (u *unshelving) run(ctx context.Context) error {
	m, inst := u.m, u.inst
	var err error
	if u.bdms, err = m.Conductor.BDMs(ctx, inst.UUID); err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "unshelve", Phase: "start", Instance: inst, BDMs: u.bdms})
	r := &buildRequest{Instance: inst, Image: u.image, BDMs: u.bdms, AccelUUIDs: u.accelerators}
	if err := m.checkBuild(r); err != nil {
		return err
	}
	u.spawn = newSpawn(m, r)
	// The zone is the chosen host's: the conductor has set it in the message alone.
	changes := map[string]any{"task_state": object.TaskStateSpawning, "availability_zone": nil}
	if inst.AvailabilityZone != "" {
		changes["availability_zone"] = inst.AvailabilityZone
	}
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil {
		return err
	}
	// The key is hidden because the disk has it already, in whatever form its owner left it.
	claim := m.Tracker.Ownership()
	maps.Copy(claim, map[string]any{"image_ref": u.image.ID, "key_data": nil, "auto_disk_config": false})
	if err := m.Conductor.SaveInstance(ctx, inst, claim, conductor.ExpectTask(object.TaskStateSpawning)); err != nil {
		return err
	}
	if err := m.removeFromHost(ctx, inst.UUID); err != nil { // of an interrupted attempt
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, step := range []func(context.Context) error{
		u.spawn.rebindNetwork, u.spawn.prepareRoot, func(ctx context.Context) error { return m.Tracker.Claim(ctx, inst) },
	} {
		g.Go(func() error { return protect(gctx, func() error { return step(gctx) }) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if u.spawn.info != nil {
		m.setInfoCache(inst, u.spawn.info)
	}
	if err := u.spawn.start(ctx); err != nil {
		return err
	}
	return u.finish(ctx)
}

func (u *unshelving) finish(ctx context.Context) error {
	m, inst := u.m, u.inst
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	changes := u.restored()
	maps.Copy(changes, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateActive, "task_state": nil, "launched_at": object.Now(),
		"system_metadata": withoutShelved(inst.SystemMetadata),
	})
	if err := m.Conductor.SaveInstance(ctx, inst, changes, conductor.ExpectTask(object.TaskStateSpawning)); err != nil {
		return err
	}
	if u.image.ID != u.imageRef {
		m.deleteShelvedImage(ctx, u.image.ID)
	}
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst})
	})
	m.Notify.Instance(ctx, notify.Event{Action: "unshelve", Phase: "end", Instance: inst, BDMs: u.bdms})
	return nil
}

// restored are the changes that give the instance back what was hidden while it was spawned.
func (u *unshelving) restored() map[string]any {
	changes := map[string]any{"image_ref": u.imageRef, "key_data": nil, "auto_disk_config": u.autoDisk}
	if u.keyData != "" {
		changes["key_data"] = u.keyData
	}
	return changes
}

// failed leaves the instance offloaded, as it was, with nothing on this host.
func (u *unshelving) failed(ctx context.Context, cause error) error {
	if leaving(ctx, cause) {
		return cause
	}
	m, inst := u.m, u.inst
	gone := isGone(cause) || overtakenByDelete(ctx)
	ctx = context.WithoutCancel(ctx)
	if u.spawn != nil {
		if left := u.spawn.abandon(ctx); left != nil {
			cause = errors.Join(cause, left)
		}
	}
	m.Tracker.Forget(ctx, inst.UUID)
	err := m.releaseAllocation(ctx, inst.UUID)
	if err != nil {
		reqctx.Log(ctx).WithError(err).Error("allocation of a failed unshelve not deleted; the next audit removes it")
	}
	if gone {
		return cause
	}
	if exception.Is(cause, "UnexpectedTaskStateError") {
		cause = exception.WithCause("UnshelveException", "the server's task changed while it was unshelved", nil, cause)
	}
	if err := m.unbindAll(ctx, inst); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("ports of a failed unshelve not unbound")
	}
	changes := u.restored()
	maps.Copy(changes, m.Tracker.NoOwnership())
	maps.Copy(changes, map[string]any{"availability_zone": nil})
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil && !isGone(err) {
		return errors.Join(cause, err)
	}
	return cause
}

// unbindAll leaves an instance's ports without a host.
func (m *Manager) unbindAll(ctx context.Context, inst *object.Instance) error {
	info := inst.NetworkInfo()
	ids := make([]string, 0, len(info))
	for i := range info {
		ids = append(ids, info[i].ID)
	}
	return m.Neutron.Unbind(ctx, inst.UUID, ids, false)
}

// rebindNetwork binds the ports that an instance has to this host and plugs them. It is prepareNetwork
// for an instance that comes from elsewhere, and returns as that does.
func (s *spawn) rebindNetwork(ctx context.Context) error {
	m := s.m
	err := m.Neutron.BindToHost(ctx, neutron.BindRequest{
		InstanceUUID: s.inst.UUID, ProjectID: s.inst.ProjectID, AvailabilityZone: s.inst.AvailabilityZone, Host: m.opts.Host,
	})
	if err != nil {
		return networkError(s.inst, err)
	}
	// The instance itself is read by others now.
	own := &object.Instance{Header: s.inst.Clone(), ID: s.inst.ID, UUID: s.inst.UUID, ProjectID: s.inst.ProjectID}
	if s.info, err = m.refreshNetworkInfo(ctx, own); err != nil {
		return networkError(s.inst, err)
	}
	s.order = slices.Collect(func(yield func(string) bool) {
		for i := range s.info {
			if !yield(s.info[i].ID) {
				return
			}
		}
	})
	g, gctx := errgroup.WithContext(ctx)
	for i := range s.info {
		v := &s.info[i]
		g.Go(func() error { return s.plugVIF(gctx, vifOfInfo(s.inst.UUID, v), i, v.Active) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return m.await(ctx, s.ports.Wait)
}
