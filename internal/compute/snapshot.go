package compute

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// snapshotSuffix names the root disk of one moment that a snapshot is packed from.
const snapshotSuffix = ".snapshot"

// snapshotInstance makes an image of an instance's root disk (nova/compute/manager.py:snapshot_instance).
// The API has made the image's record already.
func (m *Manager) snapshotInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var imageID string
	if err := args.Decode("image_id", &imageID); err != nil {
		return nil, err
	}
	err := m.checkOurs(inst)
	if err == nil {
		err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": object.TaskStateImageSnapshot},
			conductor.ExpectTask(object.TaskStateImageSnapshotPending))
	}
	if err == nil {
		err = m.inSnapshotTurn(ctx, func() error { return m.snapshot(ctx, inst, imageID, object.TaskStateImageSnapshot) })
	}
	return nil, m.snapshotEnded(ctx, inst, imageID, err)
}

// backupInstance makes an image as snapshotInstance does and deletes the oldest of the same kind
// (nova/compute/manager.py:backup_instance).
func (m *Manager) backupInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var imageID, kind string
	var rotation int
	for name, into := range map[string]any{"image_id": &imageID, "backup_type": &kind, "rotation": &rotation} {
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	err := m.checkOurs(inst)
	if err == nil {
		err = m.inSnapshotTurn(ctx, func() error { return m.snapshot(ctx, inst, imageID, object.TaskStateImageBackup) })
	}
	if err != nil {
		return nil, m.snapshotEnded(ctx, inst, imageID, err)
	}
	return nil, m.rotateBackups(ctx, inst.UUID, kind, rotation)
}

// inSnapshotTurn waits for one of max_concurrent_snapshots.
func (m *Manager) inSnapshotTurn(ctx context.Context, take func() error) error {
	if err := m.await(ctx, func(ctx context.Context) error { return m.snapshots.Acquire(ctx, 1) }); err != nil {
		return fmt.Errorf("wait for the snapshot's turn: %w", err)
	}
	defer m.snapshots.Release(1)
	return take()
}

// snapshot is nova/compute/manager.py:_snapshot_instance. task is the task state that the instance has.
func (m *Manager) snapshot(ctx context.Context, inst *object.Instance, imageID, task string) error {
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return err
	}
	if err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"power_state": int(now)}); err != nil {
		return err
	}
	m.notifySnapshot(ctx, inst, imageID, "start")
	err = m.upload(ctx, inst, imageID, snapshotTasks{begin: task, pending: object.TaskStateImagePendingUpload, uploading: object.TaskStateImageUploading})
	if err != nil {
		return err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": nil}, conductor.ExpectTask(object.TaskStateImageUploading))
	if err != nil {
		return err
	}
	m.notifySnapshot(ctx, inst, imageID, "end")
	return nil
}

func (m *Manager) notifySnapshot(ctx context.Context, inst *object.Instance, imageID, phase string) {
	m.notifyEvent(ctx, notify.Event{Action: "snapshot", Phase: phase, Instance: inst, SnapshotImageID: imageID})
}

// snapshotEnded decides what a failed snapshot leaves behind: never an image without data. An
// instance or an image that was deleted meanwhile is no failure; neither is one that somebody
// else works on now.
func (m *Manager) snapshotEnded(ctx context.Context, inst *object.Instance, imageID string, err error) error {
	if err == nil || leaving(ctx, err) {
		return err
	}
	log := reqctx.Log(ctx).WithField("image_id", imageID).WithError(err)
	lasting := context.WithoutCancel(ctx)
	err = novaError(inst, err)
	switch {
	case isGone(err) || overtakenByDelete(ctx) || exception.Is(err, "InstanceNotRunning"):
		log.Info("snapshot ended because the instance is being deleted")
		m.deleteSnapshotImage(lasting, imageID)
		return m.endSnapshotTask(lasting, inst)
	case exception.Is(err, "ImageNotFound"):
		log.Warning("snapshot ended because its image was deleted")
		return m.Conductor.SaveInstance(lasting, inst, map[string]any{"task_state": nil})
	}
	m.deleteSnapshotImage(lasting, imageID)
	return err
}

// endSnapshotTask takes the task from an instance whose snapshot came to nothing. Of one that is being deleted
// it is a different one by now; nova-compute leaves it to one whose guest has just ended, for good.
func (m *Manager) endSnapshotTask(ctx context.Context, inst *object.Instance) error {
	err := m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": nil}, conductor.ExpectTask(
		object.TaskStateImageSnapshotPending, object.TaskStateImageSnapshot, object.TaskStateImageBackup,
		object.TaskStateImagePendingUpload, object.TaskStateImageUploading))
	if isGone(err) || exception.Is(err, "UnexpectedTaskStateError") {
		return nil
	}
	return err
}

// deleteSnapshotImage removes an image that came to nothing; one that is complete stays.
func (m *Manager) deleteSnapshotImage(ctx context.Context, imageID string) {
	ctx, cancel := context.WithTimeout(ctx, castTimeout)
	defer cancel()
	image, err := m.Glance.Show(ctx, imageID)
	if err == nil && image.Status != "active" {
		err = m.Glance.Delete(ctx, imageID)
	}
	if err != nil && !errors.Is(err, glance.ErrNotFound) {
		reqctx.Log(ctx).WithField("image_id", imageID).WithError(err).Warning("image of a failed snapshot not deleted")
	}
}

// frozenRoot is a root disk's content as it was at one moment.
type frozenRoot struct {
	path  string
	close func(ctx context.Context) error
}

// freezeRoot gives the content of an instance's root disk at one moment. A guest that is off has
// it on disk. One that runs is asked to prepare for it (quiesce) and frozen while the back end copies what the guest has changed, and
// goes on before the first byte is packed. Where the back end cannot copy, or has no room for it,
// the guest stays frozen until it is packed: late is better than inconsistent, or than a full disk.
func (m *Manager) freezeRoot(ctx context.Context, inst *object.Instance, rec record) (*frozenRoot, error) {
	uuid := rec.UUID
	state, err := m.powerState(ctx, uuid)
	if err != nil {
		return nil, err
	}
	if isOff(state) {
		path, err := m.Roots.Mount(ctx, rec.Root)
		if err != nil {
			return nil, fmt.Errorf("mount root disk: %w", err)
		}
		return &frozenRoot{path: path, close: func(ctx context.Context) error { return m.Roots.Unmount(ctx, uuid) }}, nil
	}
	thaw := func(context.Context) error { return nil } // of a guest that its owner has paused
	if state == driver.PowerStateRunning {
		if thaw, err = m.freezeGuest(ctx, inst, rec); err != nil {
			return nil, err
		}
	}
	frozen, err := m.copyRoot(ctx, rec)
	if err == nil {
		if err := thaw(context.WithoutCancel(ctx)); err != nil {
			return nil, errors.Join(fmt.Errorf("thaw guest: %w", err), frozen.close(context.WithoutCancel(ctx)))
		}
		return frozen, nil
	}
	if !errors.Is(err, storage.ErrUnsupported) && !errors.Is(err, storage.ErrNoSpace) {
		return nil, errors.Join(err, thaw(context.WithoutCancel(ctx)))
	}
	reqctx.Log(ctx).WithError(err).Warning("root disk cannot be copied; the guest stays frozen until it is packed")
	path, err := m.Roots.Mount(ctx, rec.Root)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount root disk: %w", err), thaw(context.WithoutCancel(ctx)))
	}
	return &frozenRoot{path: path, close: thaw}, nil
}

// freezeGuest freezes a running guest once it is prepared; thaw lets it go on.
func (m *Manager) freezeGuest(ctx context.Context, inst *object.Instance, rec record) (thaw func(context.Context) error, err error) {
	uuid := rec.UUID
	m.flushRoot(ctx, uuid)
	quiesced, err := m.quiesce(ctx, inst, rec)
	if err != nil {
		return nil, err
	}
	if quiesced {
		m.flushRoot(ctx, uuid) // what that has written
	}
	if err := m.Driver.Pause(ctx, uuid); err != nil {
		return nil, errors.Join(fmt.Errorf("freeze guest: %w", err), m.unquiesce(ctx, uuid))
	}
	began := time.Now()
	return func(lasting context.Context) error {
		err := m.Driver.Unpause(lasting, uuid)
		reqctx.Log(ctx).WithField("frozen_ms", time.Since(began).Milliseconds()).Info("guest was frozen for a snapshot")
		return errors.Join(err, m.unquiesce(ctx, uuid))
	}, nil
}

// flushRoot has the kernel write back most of what the guest has written while it still runs: what is left
// is written while it is frozen.
func (m *Manager) flushRoot(ctx context.Context, uuid string) {
	copier, ok := m.Roots.(storage.Copier)
	if !ok {
		return
	}
	if err := copier.Flush(ctx, uuid); err != nil && !errors.Is(err, storage.ErrNotFound) {
		reqctx.Log(ctx).WithError(err).Warning("root disk not written back before the freeze, which takes longer now")
	}
}

// copyRoot copies the root disk of a frozen guest to one beside it.
func (m *Manager) copyRoot(ctx context.Context, rec record) (*frozenRoot, error) {
	copier, ok := m.Roots.(storage.Copier)
	if !ok {
		return nil, fmt.Errorf("%w: root disks cannot be copied", storage.ErrUnsupported)
	}
	root := rec.Root
	root.InstanceID = rec.UUID + snapshotSuffix
	drop := func(ctx context.Context) error { return m.Roots.Delete(ctx, root.InstanceID) }
	if err := drop(ctx); err != nil { // of an earlier process
		return nil, err
	}
	if err := copier.Copy(ctx, rec.UUID, root); err != nil {
		return nil, fmt.Errorf("copy root disk: %w", err)
	}
	path, err := m.Roots.Mount(ctx, root)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount copy of root disk: %w", err), drop(context.WithoutCancel(ctx)))
	}
	return &frozenRoot{path: path, close: drop}, nil
}

// clearInterrupted removes what a snapshot left that the end of an earlier process cut off, on the host and in the guest.
func (m *Manager) clearInterrupted(ctx context.Context, inst *object.Instance) error {
	uuid := inst.UUID
	if err := m.Roots.Delete(ctx, uuid+snapshotSuffix); err != nil {
		return err
	}
	state, err := m.powerState(ctx, uuid)
	switch {
	case err != nil:
		return err
	case state == driver.PowerStatePaused && inst.VMState == object.VMStateActive:
		err = m.Driver.Unpause(ctx, uuid)
	case isOff(state):
		err = m.Roots.Unmount(ctx, uuid)
	}
	return errors.Join(err, m.unquiesce(ctx, uuid))
}
