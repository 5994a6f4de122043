package compute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/template"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/shadow"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/rpc"
)

// rescueMountPoint is where a rescue system finds the instance's own root disk, as it did with
// nova-lxd (driver.py:rescue).
const rescueMountPoint = "mnt"

// rescueSuffix names the root disk of a rescue system, and its use of an image.
const (
	rescueSuffix    = ".rescue"
	rescueReference = "-rescue" // the image store admits no dot
)

// rescueRecord is the part of a record that a rescue adds, from before its root disk is made.
type rescueRecord struct {
	// Active: every start of the instance starts the rescue system, in the place and with the
	// ports of the instance itself.
	Active  bool         `json:"active"`
	ImageID string       `json:"image_id"`
	Root    storage.Root `json:"root"`
	Spec    driver.Spec  `json:"spec"` // of the instance, to go back to
}

// rescueInstance starts a system from another image in the place of the instance's own, whose root
// disk it finds at /mnt (nova/compute/manager.py:rescue_instance).
func (m *Manager) rescueInstance(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var password, imageRef *string
	clean := true
	for name, into := range map[string]any{"rescue_password": &password, "rescue_image_ref": &imageRef, "clean_shutdown": &clean} {
		if _, ok := args[name]; !ok {
			continue
		}
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return nil, networkError(inst, err)
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "metadata", "system_metadata", "trusted_certs"); err != nil {
		return nil, err
	}
	r := &rescue{m: m, inst: inst, info: info, ref: m.rescueImage(inst, deref(imageRef)), password: reqctx.Secret(deref(password))}
	if clean {
		r.timeout = m.shutdownTimeout(inst)
	}
	if err := r.prepare(ctx); err != nil {
		return nil, notRescuable(ctx, inst, err)
	}
	r.notify(ctx, "start", deref(imageRef))
	if err := r.run(ctx); err != nil {
		if leaving(ctx, err) {
			return nil, err
		}
		err = errors.Join(err, r.undo(context.WithoutCancel(ctx)))
		if !overtakenByDelete(ctx) {
			err = errors.Join(err, m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError}))
		}
		return nil, notRescuable(ctx, inst, err)
	}
	m.notifyExists(ctx, inst)
	now, err := m.powerState(ctx, inst.UUID)
	if err != nil {
		return nil, err
	}
	err = m.Conductor.SaveInstance(ctx, inst, map[string]any{
		"vm_state": object.VMStateRescued, "task_state": nil, "power_state": int(now), "launched_at": object.Now(),
	}, conductor.ExpectTask(object.TaskStateRescuing))
	if err != nil {
		return nil, err
	}
	r.notify(ctx, "end", deref(imageRef))
	return nil, nil
}

// notRescuable is the class that the API's callers know a failed rescue by.
func notRescuable(ctx context.Context, inst *object.Instance, err error) error {
	if leaving(ctx, err) || exception.Is(err, "InstanceNotRescuable") || exception.Is(err, "UnexpectedTaskStateError") || isGone(err) {
		return err
	}
	return exception.InstanceNotRescuable(inst.UUID, "Driver Error: "+novaError(inst, err).Error()).Because(err)
}

// rescueImage chooses the image: the request's, the configured one, else what the instance was
// made from (nova/compute/manager.py:_get_rescue_image).
func (m *Manager) rescueImage(inst *object.Instance, requested string) string {
	for _, ref := range []string{requested, m.opts.RescueImageID, inst.System("image_base_image_ref")} {
		if ref != "" {
			return ref
		}
	}
	return inst.ImageRef
}

// rescue is one rescue under way.
type rescue struct {
	m        *Manager
	inst     *object.Instance
	info     object.NetworkInfo
	ref      string
	image    object.Image
	password reqctx.Secret
	timeout  time.Duration
	rec      record
	stored   imagesync.Image // in the store
	spec     driver.Spec     // of the rescue system
}

func (r *rescue) notify(ctx context.Context, phase, requested string) {
	r.m.Notify.Instance(ctx, notify.Event{
		Action: "rescue", Phase: phase, Instance: r.inst, NetworkInfo: orEmpty(r.info), RescueImageRef: requested,
		Extra: map[string]any{"rescue_image_name": r.image.Name},
	})
}

// prepare makes the rescue system's root disk beside that of the instance, which runs on: what
// is wrong with the image harms nobody.
func (r *rescue) prepare(ctx context.Context) error {
	m, uuid := r.m, r.inst.UUID
	rec, ok, err := m.record(uuid)
	switch {
	case err != nil:
		return err
	case !ok:
		return exception.InstanceNotRescuable(uuid, "this host has no root disk of it")
	}
	r.rec = rec
	if r.image, err = m.imageOf(ctx, r.ref); err != nil {
		return err
	}
	defer m.Images.Hold(r.image.ID)() // until it is acquired
	s := newSpawn(m, &buildRequest{Instance: r.inst, Image: r.image})
	if err := s.fetchImage(ctx); err != nil {
		return err
	}
	own, err := r.ownSpec(ctx)
	if err != nil {
		return err
	}
	if rec.rescued() { // a crash cut off an earlier attempt, and the rescue system is in its place already
		if err := m.leaveRescue(ctx, uuid); err != nil {
			return err
		}
		rec.Rescue = nil
		r.rec = rec
	}
	root := storage.Root{
		InstanceID: uuid + rescueSuffix, ImagePath: s.image.Path, SizeGB: s.limits.RootGB, IDs: rec.Root.IDs, Nested: s.limits.Nested, Pool: rec.Root.Pool,
	}
	r.spec = own
	r.spec.ImageID, r.spec.Arch = r.image.ID, s.image.Metadata.Arch()
	r.stored = s.image
	if err := m.dropRescue(ctx, &r.rec); err != nil { // of an earlier attempt, maybe of another image
		return err
	}
	r.rec.Rescue = &rescueRecord{ImageID: r.image.ID, Root: root, Spec: own}
	if err := m.saveRecord(r.rec); err != nil {
		return err
	}
	if err := m.Images.Acquire(r.image.ID, uuid+rescueReference); err != nil {
		return err
	}
	if err := m.Roots.Create(ctx, root); err != nil {
		return errors.Join(fmt.Errorf("create rescue disk: %w", err), r.discard(context.WithoutCancel(ctx)))
	}
	return nil
}

// ownSpec is the instance's own specification, also after an earlier attempt has replaced it.
func (r *rescue) ownSpec(ctx context.Context) (driver.Spec, error) {
	if r.rec.Rescue != nil {
		return r.rec.Rescue.Spec, nil
	}
	specs, err := r.m.Driver.List(ctx)
	if err != nil {
		return driver.Spec{}, err
	}
	for _, s := range specs {
		if s.UUID == r.inst.UUID {
			return s, nil
		}
	}
	return driver.Spec{}, exception.InstanceNotRescuable(r.inst.UUID, "this host has no container of it")
}

// run stops the instance and starts the rescue system in its place.
func (r *rescue) run(ctx context.Context) error {
	m, uuid := r.m, r.inst.UUID
	if err := m.powerOffOrLeave(ctx, uuid, r.timeout); err != nil {
		return err
	}
	r.rec.Rescue.Active, r.rec.Hot = true, false
	r.rec.setVIFs(vifsOfInfo(uuid, r.info))
	if err := m.saveRecord(r.rec); err != nil {
		return err
	}
	rootfs, err := m.Roots.Mount(ctx, r.rec.Rescue.Root)
	if err != nil {
		return fmt.Errorf("mount rescue disk: %w", err)
	}
	own, err := m.Roots.Mount(ctx, r.rec.Root)
	if err != nil {
		return fmt.Errorf("mount root disk: %w", err)
	}
	if err := r.furnish(ctx, rootfs); err != nil {
		return err
	}
	r.spec.Binds = append(m.driveBinds(r.inst, r.inst.System("image_"+metadata.ImageConfigDrive)), driver.Bind{Source: own, Target: rescueMountPoint})
	if err := m.Driver.Create(ctx, r.spec, rootfs); err != nil {
		return err
	}
	return m.runRecorded(ctx, r.rec)
}

// furnish makes the rescue system's own files: those of its image's templates, what is injected into every new root disk, and the password.
func (r *rescue) furnish(ctx context.Context, rootfs string) error {
	if template.Needed(r.stored, template.Create, template.Start) {
		rec := r.rec
		rec.Templates = r.m.templateVars(ctx, r.inst, r.stored)
		if err := r.m.writeTemplates(ctx, rec, r.stored, rootfs, template.Create, template.Start); err != nil {
			return err
		}
	}
	if r.m.injects(r.inst, r.inst.System("image_"+metadata.ImageConfigDrive)) {
		content, err := r.m.injected(ctx, r.inst)
		if err != nil {
			return err
		}
		if err := writeInto(ctx, rootfs, r.rec.Root.IDs, content); err != nil {
			return err
		}
	}
	if r.password == "" {
		return nil
	}
	root, err := os.Open(rootfs)
	if err != nil {
		return fmt.Errorf("open rescue disk: %w", err)
	}
	defer root.Close() //nolint:errcheck // a directory
	// As with nova-compute's injection, a system that takes no password is a rescue system all the same: its
	// image may let its owner in by another way.
	if err := shadow.SetPassword(ctx, root, imageAdminUser(&r.image), r.password.Reveal()); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("password of the rescue system not set")
	}
	return nil
}

// undo puts the instance back as it was before the rescue: stopped, if it came to that.
func (r *rescue) undo(ctx context.Context) error {
	if !r.rec.rescued() {
		return r.discard(ctx)
	}
	return r.m.leaveRescue(ctx, r.inst.UUID)
}

// discard removes a rescue disk that nothing uses yet.
func (r *rescue) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := r.m.dropRescue(ctx, &r.rec); err != nil {
		return err
	}
	return r.m.saveRecord(r.rec)
}

// unrescueInstance goes back to the instance's own system (nova/compute/manager.py:unrescue_instance).
func (m *Manager) unrescueInstance(ctx context.Context, inst *object.Instance, _ rpc.Args) (any, error) {
	info, err := m.refreshNetworkInfo(ctx, inst)
	if err != nil {
		return nil, networkError(inst, err)
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "flavor", "metadata", "system_metadata"); err != nil {
		return nil, err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "unrescue", Phase: "start", Instance: inst, NetworkInfo: orEmpty(info)})
	err = m.leaveRescue(ctx, inst.UUID)
	if err == nil {
		err = m.powerOn(ctx, inst, info)
	}
	if err != nil {
		if leaving(ctx, err) || overtakenByDelete(ctx) {
			return nil, err
		}
		return nil, errors.Join(err, m.Conductor.SaveInstance(ctx, inst, map[string]any{"vm_state": object.VMStateError}))
	}
	if err := m.saveRunning(ctx, inst, conductor.ExpectTask(object.TaskStateUnrescuing)); err != nil {
		return nil, err
	}
	m.Notify.Instance(ctx, notify.Event{Action: "unrescue", Phase: "end", Instance: inst, NetworkInfo: orEmpty(info)})
	return nil, nil
}

// leaveRescue ends the rescue system and gives the container its own root disk again. An instance
// that is not rescued is only stopped. It may be repeated.
func (m *Manager) leaveRescue(ctx context.Context, uuid string) error {
	rec, ok, err := m.record(uuid)
	if err != nil {
		return err
	}
	if !ok {
		return exception.InstanceNotFound(uuid)
	}
	if err := m.powerOff(ctx, uuid, 0); err != nil || rec.Rescue == nil {
		return err
	}
	if !rec.Rescue.Active {
		return errors.Join(m.dropRescue(ctx, &rec), m.saveRecord(rec))
	}
	rootfs, err := m.Roots.Mount(ctx, rec.Root)
	if err != nil {
		return fmt.Errorf("mount root disk: %w", err)
	}
	err = m.Driver.Create(ctx, rec.Rescue.Spec, rootfs)
	if err := errors.Join(err, m.Roots.Unmount(ctx, uuid)); err != nil {
		return err
	}
	if err := m.dropRescue(ctx, &rec); err != nil {
		return err
	}
	return m.saveRecord(rec)
}

// dropRescue removes what a rescue put on the host; the record is the caller's to store. An
// instance that is not rescued has nothing of it.
func (m *Manager) dropRescue(ctx context.Context, rec *record) error {
	if rec.Rescue == nil {
		return nil
	}
	if err := m.Roots.Delete(ctx, rec.UUID+rescueSuffix); err != nil {
		return fmt.Errorf("delete rescue disk: %w", err)
	}
	if err := m.releaseImage(rec.Rescue.ImageID, rec.UUID+rescueReference); err != nil {
		return err
	}
	rec.Rescue = nil
	return nil
}

// unrescueExpired ends the rescue of instances that have been rescued for longer than
// rescue_timeout (nova/compute/manager.py:_poll_rescued_instances).
func (m *Manager) unrescueExpired(ctx context.Context) error {
	if m.opts.RescueTimeout <= 0 {
		return nil
	}
	rescued, err := m.Conductor.InstancesByFilters(ctx, map[string]any{"vm_state": object.VMStateRescued, "task_state": nil, "host": m.opts.Host},
		"info_cache", "metadata", "system_metadata", "flavor")
	if err != nil {
		return fmt.Errorf("list rescued instances: %w", err)
	}
	for _, inst := range rescued {
		if time.Since(inst.LaunchedAt.Time) < m.opts.RescueTimeout {
			continue
		}
		ctx := reqctx.WithField(ctx, "instance", inst.UUID)
		reqctx.Log(ctx).Info("ending a rescue after rescue_timeout")
		if err := m.throughAPI(ctx, inst, object.TaskStateUnrescuing, "unrescue", "unrescue_instance"); err != nil {
			reqctx.Log(ctx).WithError(err).Warning("rescue not ended; the next turn tries again")
		}
	}
	return nil
}
