package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/rpc"
)

// rebuildRequest is the arguments of rebuild_instance (compute/rpcapi.py). A rebuild in place
// and an evacuation share it: Recreate tells them apart.
type rebuildRequest struct {
	Instance          *object.Instance
	NewPassword       reqctx.Secret
	InjectedFiles     json.RawMessage
	ImageRef          string
	OrigImageRef      string
	OrigSysMetadata   map[string]*string
	BDMs              []*object.BlockDeviceMapping // nil: to be read
	Recreate          bool
	OnSharedStorage   *bool
	PreserveEphemeral bool
	Migration         *object.Migration
	ScheduledNode     string
	RequestSpec       json.RawMessage
	AccelUUIDs        []string
	TargetState       string // from 2023.1; "stopped" in evacuations

	image   object.Image
	stopped bool // the server was stopped and stays so
	touched bool // the old root disk may be gone
}

func decodeRebuildRequest(inst *object.Instance, args rpc.Args) (*rebuildRequest, error) {
	r := &rebuildRequest{Instance: inst}
	var password, image, original, node, target *string
	var bdms *object.BlockDeviceMappingList
	for name, into := range map[string]any{
		"new_pass": &password, "injected_files": &r.InjectedFiles, "image_ref": &image, "orig_image_ref": &original,
		"orig_sys_metadata": &r.OrigSysMetadata, "bdms": &bdms, "recreate": &r.Recreate, "on_shared_storage": &r.OnSharedStorage,
		"preserve_ephemeral": &r.PreserveEphemeral, "migration": &r.Migration, "scheduled_node": &node, "request_spec": &r.RequestSpec,
		"accel_uuids": &r.AccelUUIDs, "target_state": &target,
	} {
		if _, ok := args[name]; !ok {
			continue // later releases send more
		}
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	r.NewPassword, r.ImageRef, r.OrigImageRef = reqctx.Secret(deref(password)), deref(image), deref(original)
	r.ScheduledNode, r.TargetState = deref(node), deref(target)
	if bdms != nil {
		r.BDMs = bdms.Objects
	}
	return r, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// rebuildInstance gives an instance a new root disk, of the same image or another; its id, ports
// and addresses stay (nova/compute/manager.py:rebuild_instance).
func (m *Manager) rebuildInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	r, err := decodeRebuildRequest(inst, args)
	if err != nil {
		return nil, err
	}
	if r.Recreate {
		return nil, m.evacuate(ctx, r)
	}
	if err := m.checkOurs(inst); err != nil {
		return nil, err
	}
	if err := m.rebuild(ctx, r); err != nil {
		return nil, m.rebuildFailed(ctx, r, err)
	}
	return nil, nil
}

// rebuild does everything that can fail without a change to the host first: until the new
// image is in the store, the guest runs on its old root disk.
func (m *Manager) rebuild(ctx context.Context, r *rebuildRequest) error {
	inst := r.Instance
	s, err := m.prepareRebuild(ctx, r)
	if err != nil {
		return err
	}
	if err := m.checkShares(inst.UUID, inst.Flavor); err != nil {
		return err
	}
	defer m.Images.Hold(r.image.ID)() // until it is acquired
	if err := s.choosePool(); err != nil {
		return err
	}
	if err := s.fetchImage(ctx); err != nil {
		return err
	}
	r.touched = true
	if err := m.removeOldRoot(ctx, r, s); err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStateRebuildSpawning},
		conductor.ExpectTask(object.TaskStateRebuildBlockDeviceMapping))
	if err != nil {
		return err
	}
	s.rec.Templates = nil
	if err := m.orOff(ctx, inst.UUID, func() error { return m.startRebuilt(ctx, r, s) }); err != nil {
		return err
	}
	return m.finishRebuild(ctx, r)
}

// startRebuilt makes the new root disk, and starts the guest on it unless the server is to be stopped.
func (m *Manager) startRebuilt(ctx context.Context, r *rebuildRequest, s *spawn) error {
	if err := s.makeRoot(ctx); err != nil {
		return err
	}
	if err := s.furnish(ctx); err != nil || r.stopped {
		return err
	}
	return m.runRecorded(ctx, s.rec)
}

// prepareRebuild says that the rebuild begins, and refuses what cannot be.
func (m *Manager) prepareRebuild(ctx context.Context, r *rebuildRequest) (*spawn, error) {
	inst := r.Instance
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "info_cache", "metadata", "system_metadata", "trusted_certs"); err != nil {
		return nil, err
	}
	r.stopped = inst.VMState == object.VMStateStopped || r.TargetState == object.VMStateStopped
	var err error
	if r.BDMs == nil {
		if r.BDMs, err = m.Conductor.BDMs(ctx, inst.UUID); err != nil {
			return nil, err
		}
	}
	if r.image, err = m.imageOf(ctx, r.ImageRef); err != nil {
		return nil, err
	}
	m.notifyExists(ctx, beforeRebuild(r))
	m.Notify.Instance(ctx, notify.Event{Action: "rebuild", Phase: "start", Instance: inst, ImageName: r.image.Name, BDMs: r.BDMs})
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return nil, err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(now), "task_state": object.TaskStateRebuilding},
		conductor.ExpectTask(object.TaskStateRebuilding))
	if err != nil {
		return nil, err
	}
	password := r.NewPassword.Reveal()
	s := newSpawn(m, &buildRequest{
		Instance: inst, Image: r.image, BDMs: r.BDMs, AccelUUIDs: r.AccelUUIDs, AdminPassword: &password, InjectedFiles: r.InjectedFiles,
	})
	if err := m.checkBuild(s.r); err != nil {
		return nil, err
	}
	rec, ok, err := m.record(inst.UUID)
	if err != nil {
		return nil, err
	}
	if ok {
		s.rec = rec
	} else { // a server in error may have nothing here any more
		s.rec.setVIFs(vifsOfInfo(inst.UUID, inst.NetworkInfo()))
	}
	return s, nil
}

// beforeRebuild is the instance as it was before the API gave it the new image, which is what
// the time until now is billed by.
func beforeRebuild(r *rebuildRequest) *object.Instance {
	before := *r.Instance
	if r.OrigImageRef != "" {
		before.ImageRef = r.OrigImageRef
	}
	if r.OrigSysMetadata != nil {
		before.SystemMetadata = r.OrigSysMetadata
	}
	return &before
}

// removeOldRoot ends the guest and removes its root disk, and its ephemeral disks unless they are to be
// preserved. Ports stay plugged, the ids stay reserved.
func (m *Manager) removeOldRoot(ctx context.Context, r *rebuildRequest, s *spawn) error {
	inst := r.Instance
	if err := m.powerOffOrLeave(ctx, inst.UUID, m.shutdownTimeout(inst)); err != nil {
		return err
	}
	s.rec.Hot = false // the ports are as they were plugged
	if err := m.destroyGuest(ctx, inst.UUID); err != nil {
		return err
	}
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStateRebuildBlockDeviceMapping},
		conductor.ExpectTask(object.TaskStateRebuilding))
	if err != nil {
		return err
	}
	if err := m.dropRescue(ctx, &s.rec); err != nil {
		return err
	}
	if err := m.Roots.Delete(ctx, inst.UUID); err != nil {
		return fmt.Errorf("delete root disk: %w", err)
	}
	if !r.PreserveEphemeral {
		if err := m.Ephemeral.Delete(ctx, inst.UUID); err != nil {
			return fmt.Errorf("delete ephemeral disks: %w", err)
		}
	}
	return m.releaseImage(s.rec.ImageID, inst.UUID)
}

// finishRebuild makes the instance active, and stopped again if it was.
func (m *Manager) finishRebuild(ctx context.Context, r *rebuildRequest) error {
	inst := r.Instance
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"power_state": int(now), "vm_state": object.VMStateActive, "task_state": nil, "launched_at": object.Now(),
	}, conductor.ExpectTask(object.TaskStateRebuildSpawning))
	if err != nil {
		return err
	}
	if r.stopped {
		if err := m.stopRebuilt(ctx, inst); err != nil {
			return err
		}
	}
	m.tellScheduler(ctx, func(ctx context.Context) error {
		return m.Conductor.UpdateInstanceInfo(ctx, m.opts.Host, []*object.Instance{inst})
	})
	m.Notify.Instance(ctx, notify.Event{
		Action: "rebuild", Phase: "end", Instance: inst, ImageName: r.image.Name, NetworkInfo: orEmpty(inst.NetworkInfo()), BDMs: r.BDMs,
	})
	owner := m.Tracker.Ownership()
	delete(owner, "launched_on")
	if err := m.Conductor.SaveInstance(ctx, inst, owner); err != nil {
		return err
	}
	return m.Conductor.DropMigrationContext(ctx, inst)
}

// orEmpty makes a list of ports that is there and empty of none: notifications tell them apart.
func orEmpty(info object.NetworkInfo) object.NetworkInfo {
	if info == nil {
		return object.NetworkInfo{}
	}
	return info
}

// stopRebuilt leaves a server stopped that was. nova-compute starts the guest and kills it; here it
// is not started, which spares it a first boot that ends in the middle.
func (m *Manager) stopRebuilt(ctx context.Context, inst *object.Instance) error {
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStatePoweringOff, "progress": 0})
	if err != nil {
		return err
	}
	m.startEvent(ctx, inst.UUID, "stop_instance")
	err = m.stop(ctx, inst, false)
	m.finishEvent(ctx, inst.UUID, "stop_instance", err)
	return err
}

// rebuildFailed decides what a failed rebuild leaves: ERROR with the cause, from which another
// rebuild works. As long as the old root disk was not touched the server goes on with it, and
// says so: then the image that the API has noted is taken back.
func (m *Manager) rebuildFailed(ctx context.Context, r *rebuildRequest, cause error) error {
	inst := r.Instance
	if leaving(ctx, cause) {
		return cause
	}
	cause = novaError(inst, cause)
	gone := isGone(cause) || overtakenByDelete(ctx)
	ctx = context.WithoutCancel(ctx)
	m.Notify.Instance(ctx, notify.Event{Action: "rebuild", Phase: "error", Instance: inst, ImageName: r.image.Name, Err: cause, BDMs: r.BDMs})
	if gone {
		reqctx.Log(ctx).WithError(cause).Info("rebuild ended because the instance is being deleted")
		return nil
	}
	if exception.Is(cause, "UnexpectedTaskStateError") && !r.touched {
		return cause // another operation has the instance
	}
	changes := map[string]any{"vm_state": object.VMStateError}
	if !r.touched && r.OrigImageRef != "" && r.OrigSysMetadata != nil {
		maps.Copy(changes, map[string]any{"image_ref": r.OrigImageRef, "system_metadata": r.OrigSysMetadata})
	}
	if err := m.Conductor.SaveInstance(ctx, inst, changes); err != nil && !isGone(err) {
		return errors.Join(cause, err)
	}
	return cause
}
