package compute

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// shelvedKeys are what a shelved instance carries in system_metadata.
var shelvedKeys = []string{"shelved_at", "shelved_image_id", "shelved_host"}

// shelveInstance stops an instance and keeps its root disk as an image, and takes it off the host
// if shelved_offload_time says so (nova/compute/manager.py:shelve_instance).
func (m *Manager) shelveInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var imageID string
	if err := args.Decode("image_id", &imageID); err != nil {
		return nil, err
	}
	clean, err := cleanShutdown(args)
	if err != nil {
		return nil, err
	}
	if err := m.checkOurs(inst); err != nil {
		m.deleteSnapshotImage(context.WithoutCancel(ctx), imageID)
		return nil, err
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "info_cache", "metadata", "system_metadata"); err != nil {
		return nil, err
	}
	if inst.VMState == object.VMStateShelved { // an earlier process was stopped between shelving and offloading
		return nil, m.shelveOffload(ctx, inst, false)
	}
	if err := m.shelve(ctx, inst, imageID, clean && inst.VMState != object.VMStatePaused); err != nil {
		return nil, m.shelveFailed(ctx, inst, imageID, err)
	}
	if m.opts.ShelvedOffloadTime == 0 {
		return nil, m.shelveOffload(ctx, inst, false)
	}
	return nil, nil
}

func (m *Manager) shelve(ctx context.Context, inst *object.Instance, imageID string, clean bool) error {
	bdms, err := m.Conductor.BDMs(ctx, inst.UUID)
	if err != nil {
		return err
	}
	m.notifyExists(ctx, inst)
	m.Notify.Instance(ctx, notify.Event{Action: "shelve", Phase: "start", Instance: inst, BDMs: bdms})
	timeout := time.Duration(0)
	if clean {
		timeout = m.shutdownTimeout(inst)
	}
	if err := m.powerOffOrLeave(ctx, inst.UUID, timeout); err != nil {
		return err
	}
	err = m.upload(ctx, inst, imageID, snapshotTasks{
		begin: object.TaskStateShelving, pending: object.TaskStateShelvingImagePendingUpload, uploading: object.TaskStateShelvingImageUploading,
	})
	if err != nil {
		return err
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	at, host := time.Now().UTC().Format("2006-01-02T15:04:05.000000"), m.opts.Host
	system := maps.Clone(inst.SystemMetadata)
	maps.Copy(system, map[string]*string{"shelved_at": &at, "shelved_image_id": &imageID, "shelved_host": &host})
	changes := map[string]any{"vm_state": object.VMStateShelved, "task_state": nil, "power_state": int(now), "system_metadata": system}
	if m.opts.ShelvedOffloadTime == 0 {
		changes["task_state"] = object.TaskStateShelvingOffloading
	}
	err = m.Conductor.SaveInstance(ctx, inst, changes, conductor.ExpectTask(object.TaskStateShelving, object.TaskStateShelvingImageUploading))
	if err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "shelve", Phase: "end", Instance: inst, BDMs: bdms})
	return nil
}

// shelveFailed deletes the image that came to nothing and lets the guest run again if its server does.
// nova-compute leaves it stopped, and the next look at the power states stops the server.
func (m *Manager) shelveFailed(ctx context.Context, inst *object.Instance, imageID string, err error) error {
	if leaving(ctx, err) {
		return err
	}
	lasting := context.WithoutCancel(ctx)
	m.deleteSnapshotImage(lasting, imageID)
	if isGone(err) || overtakenByDelete(ctx) || inst.VMState != object.VMStateActive {
		return err
	}
	rec, ok, recErr := m.record(inst.UUID)
	if recErr != nil || !ok {
		return errors.Join(err, recErr)
	}
	return errors.Join(err, m.runRecorded(lasting, rec))
}

// shelveOffloadInstance takes a shelved instance off this host (nova/compute/manager.py:shelve_offload_instance).
func (m *Manager) shelveOffloadInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	clean, err := cleanShutdown(args)
	if err != nil {
		return nil, err
	}
	return nil, m.shelveOffload(ctx, inst, clean)
}

func (m *Manager) shelveOffload(ctx context.Context, inst *object.Instance, clean bool) error {
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "info_cache", "metadata", "system_metadata"); err != nil {
		return err
	}
	bdms, err := m.Conductor.BDMs(ctx, inst.UUID)
	if err != nil {
		return err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "shelve_offload", Phase: "start", Instance: inst, BDMs: bdms})
	if err := m.checkShelved(ctx, inst); err != nil {
		return err
	}
	timeout := time.Duration(0)
	if clean {
		timeout = m.shutdownTimeout(inst)
	}
	if err := m.powerOffOrLeave(ctx, inst.UUID, timeout); err != nil {
		return err
	}
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	if err := m.leaveHost(ctx, inst); err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateShelvedOffloaded, "task_state": nil,
	}, conductor.ExpectTask(object.TaskStateShelving, object.TaskStateShelvingOffloading))
	if err != nil {
		return err
	}
	m.Tracker.Forget(ctx, inst.UUID)
	changes := m.Tracker.NoOwnership()
	changes["availability_zone"] = nil
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil {
		return err
	}
	m.tellScheduler(ctx, func(ctx context.Context) error { return m.Conductor.DeleteInstanceInfo(ctx, m.opts.Host, inst.UUID) })
	m.Notify.Instance(ctx, notify.Event{Action: "shelve_offload", Phase: "end", Instance: inst, BDMs: bdms})
	return nil
}

// checkShelved makes sure that the image is complete which is about to be all that is left of the
// server; nova-compute does not look.
func (m *Manager) checkShelved(ctx context.Context, inst *object.Instance) error {
	id := inst.System("shelved_image_id")
	if id == "" {
		return nil // offloaded without an image by an operator who knows better
	}
	_, err := m.imageOf(ctx, id)
	if errors.Is(err, openstack.ErrNoIdentity) { // of a periodic task, where [glance] has no user of its own
		reqctx.Log(ctx).WithField("image_id", id).Debug("image of a shelved instance not looked at")
		return nil
	}
	if errors.Is(err, glance.ErrNotFound) {
		return fmt.Errorf("root disk not removed, because its image is gone: %w", err)
	}
	return err
}

// withoutShelved is system_metadata without what shelving added.
func withoutShelved(system map[string]*string) map[string]*string {
	system = maps.Clone(system)
	for _, key := range shelvedKeys {
		delete(system, key)
	}
	return system
}

// deleteShelvedImage removes the image that shelving made: the server lives again, and its host has the data
// (nova/compute/manager.py:_delete_snapshot_of_shelved_instance).
func (m *Manager) deleteShelvedImage(ctx context.Context, id string) {
	if id == "" {
		return
	}
	if err := m.Glance.Delete(ctx, id); err != nil && !errors.Is(err, glance.ErrNotFound) {
		reqctx.Log(ctx).WithField("image_id", id).WithError(err).Warning("image of an unshelved server not deleted")
	}
}

// leaveHost removes an instance that lives on elsewhere, or nowhere for a time, from this host and gives
// its resources back. Its ports stay its own, bound to no host.
func (m *Manager) leaveHost(ctx context.Context, inst *object.Instance) error {
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return networkError(inst, err)
	}
	ids := make([]string, 0, len(info))
	for i := range info {
		ids = append(ids, info[i].ID)
	}
	if err := m.destroyGuest(ctx, inst.UUID); err != nil {
		return err
	}
	if err := m.Neutron.Unbind(ctx, inst.UUID, ids, false); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("ports not unbound; they are bound anew where the server comes back")
	}
	if err := m.removeTraces(ctx, inst.UUID, vifsOfInfo(inst.UUID, info)); err != nil {
		return err
	}
	return m.releaseAllocation(ctx, inst.UUID)
}

// offloadShelved takes instances off this host that have been shelved for longer than shelved_offload_time
// (nova/compute/manager.py:_poll_shelved_instances).
func (m *Manager) offloadShelved(ctx context.Context) error {
	if m.opts.ShelvedOffloadTime <= 0 {
		return nil // at once, which needs no turn, or never
	}
	shelved, err := m.Conductor.InstancesByFilters(ctx, map[string]any{"vm_state": object.VMStateShelved, "task_state": nil, "host": m.opts.Host},
		"info_cache", "metadata", "system_metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list shelved instances: %w", err)
	}
	for _, inst := range shelved {
		ctx := reqctx.WithField(ctx, "instance", inst.UUID)
		at, err := parseShelvedAt(inst.System("shelved_at"))
		if err != nil {
			reqctx.Log(ctx).WithError(err).Warning("time of shelving is not readable")
			continue
		}
		if time.Since(at) < m.opts.ShelvedOffloadTime {
			continue
		}
		if err := m.throughAPI(ctx, inst, object.TaskStateShelvingOffloading, "shelveOffload", "shelve_offload_instance"); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("shelved instance not offloaded; the next turn tries again")
		}
	}
	return nil
}

// parseShelvedAt reads Python's isoformat of a time, with and without a fraction or a zone.
func parseShelvedAt(text string) (time.Time, error) {
	var at time.Time
	var err error
	for _, layout := range []string{"2006-01-02T15:04:05.999999", time.RFC3339Nano} {
		if at, err = time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return at, err
}
