package compute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/pack"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const (
	// imageWatchInterval is how often an upload looks whether its image still exists: Glance itself
	// takes all of the data before it says no.
	imageWatchInterval = 5 * time.Second
	// progressInterval is the pause between two lines about an upload.
	progressInterval = 30 * time.Second
	// uploadRetryPause is the wait for Glance to make an image fit for another upload.
	uploadRetryPause = 2 * time.Second
)

// errImageGone ends an upload whose image was deleted.
var errImageGone = errors.New("the image was deleted during its upload")

// snapshotTasks are the task states that an upload goes through.
type snapshotTasks struct{ begin, pending, uploading string }

// upload packs an instance's root disk into an image as LXD and Incus export it, and sends it to Glance
// while it is packed: nothing is written to this host. The image has to be the API's new one.
func (m *Manager) upload(ctx context.Context, inst *object.Instance, imageID string, tasks snapshotTasks) (err error) {
	rec, ok, err := m.record(inst.UUID)
	if err != nil {
		return err
	}
	if !ok {
		return exception.InstanceNotFound(inst.UUID)
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "system_metadata"); err != nil {
		return err
	}
	advance := func(task, expected string) error {
		return m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": task}, conductor.ExpectTask(expected))
	}
	if err := advance(tasks.pending, tasks.begin); err != nil {
		return err
	}
	if err := m.await(ctx, func(ctx context.Context) error { return m.awaitQueued(ctx, imageID) }); err != nil {
		return err
	}
	// All that can be done before is: the guest may be frozen until the end of the upload.
	if _, err := m.Glance.Update(ctx, imageID, m.snapshotFields(inst)); err != nil {
		return glanceError(imageID, err)
	}
	options, err := m.packOptions(ctx, inst, rec)
	if err != nil {
		return err
	}
	root, err := m.freezeRoot(ctx, inst, rec)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		err = errors.Join(err, root.close(closing))
	}()
	if err := advance(tasks.uploading, tasks.pending); err != nil {
		return err
	}
	return m.await(ctx, func(ctx context.Context) error { return m.sendRoot(ctx, imageID, root.path, options) })
}

// snapshotFields are the fields of a snapshot's image that the compute service sets
// (nova/virt/libvirt/driver.py:_create_snapshot_metadata); the API has set the others.
func (m *Manager) snapshotFields(inst *object.Instance) map[string]any {
	fields := map[string]any{
		"disk_format": "raw", "container_format": "bare", "kernel_id": nil, "ramdisk_id": nil,
		"image_location": "snapshot", "image_state": "available", "owner_id": inst.ProjectID,
	}
	if inst.OSType != "" {
		fields["os_type"] = inst.OSType
	}
	return fields
}

// packOptions say how the root disk becomes an image: metadata and templates are those of the image
// that the instance was made from, with the date of now.
func (m *Manager) packOptions(ctx context.Context, inst *object.Instance, rec record) (pack.Options, error) {
	o := pack.Options{Compression: m.opts.SnapshotCompression, Shift: pack.Shift{Base: rec.Root.IDs.Base, Count: rec.Root.IDs.Size}}
	meta := imagesync.Metadata{Architecture: m.opts.HostArch}
	base, ok, err := m.Images.Get(ctx, rec.ImageID)
	if err != nil {
		return o, err
	}
	if ok {
		meta = base.Metadata
		meta.Properties = maps.Clone(meta.Properties)
		o.Templates = base.TemplatesDir
	}
	if meta.Properties == nil {
		meta.Properties = map[string]string{}
	}
	delete(meta.Properties, "image_id")
	meta.CreationDate, meta.ExpiryDate = time.Now().Unix(), 0
	meta.Properties["name"], meta.Properties["instance_uuid"] = inst.DisplayName, inst.UUID
	o.Metadata, err = meta.YAML()
	return o, err
}

// sendRoot packs and sends, from the beginning again when the connection does not hold: what is packed is
// the same every time.
func (m *Manager) sendRoot(ctx context.Context, imageID, path string, o pack.Options) error {
	log := reqctx.Log(ctx).WithField("image_id", imageID)
	for left := m.opts.UploadRetries; ; left-- {
		err := m.sendOnce(ctx, imageID, path, o)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errImageGone):
			return exception.ImageNotFound(imageID).Because(err)
		case ctx.Err() != nil || left <= 0 || !errors.Is(err, glance.ErrUnreachable):
			return glanceError(imageID, err)
		}
		log.WithError(err).WithField("retries_left", left).Warning("snapshot not uploaded; sending it again")
		if err := m.awaitQueued(ctx, imageID); err != nil {
			return err
		}
	}
}

// sendOnce makes one attempt.
func (m *Manager) sendOnce(ctx context.Context, imageID, path string, o pack.Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	log := reqctx.Log(ctx).WithField("image_id", imageID)
	sent := &sentBytes{told: began, tell: func(n int64) { log.WithField("bytes", n).Info("snapshot is being uploaded") }}
	reader, writer := io.Pipe()
	var stats pack.Stats
	var work errgroup.Group
	work.Go(func() (err error) {
		stats, err = pack.Write(ctx, io.MultiWriter(writer, sent), path, o)
		_ = writer.CloseWithError(err) // never fails; nil is the end of the data
		return err
	})
	watch, stop := context.WithCancel(ctx)
	work.Go(func() error {
		m.watchImage(watch, imageID, cancel)
		return nil
	})
	uploadErr := m.Glance.Upload(ctx, imageID, reader)
	_ = reader.CloseWithError(errUploadEnded) // never fails; a packer that still writes must not wait
	stop()
	packErr := work.Wait()
	switch cause := context.Cause(ctx); {
	case cause != nil:
		return cause
	case packErr != nil && !errors.Is(packErr, errUploadEnded):
		return packErr
	case uploadErr != nil:
		return uploadErr
	case packErr != nil: // Glance was content with a part of the data
		return fmt.Errorf("%w: %w", glance.ErrUnreachable, packErr)
	}
	log.WithFields(map[string]any{
		"bytes": sent.n, "content_bytes": stats.Bytes, "entries": stats.Entries, "elapsed": time.Since(began).Seconds(),
	}).Info("snapshot uploaded")
	return nil
}

// errUploadEnded stops a packer whose reader is gone: the upload's own error says why.
var errUploadEnded = errors.New("upload ended")

// sentBytes counts what is packed and tells of it now and then.
type sentBytes struct {
	tell func(n int64)
	n    int64
	told time.Time
}

// Write implements io.Writer.
func (s *sentBytes) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	if now := time.Now(); now.Sub(s.told) >= progressInterval {
		s.told = now
		s.tell(s.n)
	}
	return len(p), nil
}

// watchImage ends an upload when its image is deleted. It returns when ctx ends.
func (m *Manager) watchImage(ctx context.Context, imageID string, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(imageWatchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		image, err := m.Glance.Show(ctx, imageID)
		if errors.Is(err, glance.ErrNotFound) || err == nil && (image.Status == "deleted" || image.Status == "pending_delete") {
			cancel(errImageGone)
			return
		}
	}
}

// awaitQueued waits until an image can take data: after an upload that broke off Glance needs a moment
// to give up what it has.
func (m *Manager) awaitQueued(ctx context.Context, imageID string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, castTimeout, errors.New("the image is still being saved by an earlier upload"))
	defer cancel()
	for {
		image, err := m.Glance.Show(ctx, imageID)
		switch {
		case err != nil:
			return glanceError(imageID, err)
		case image.Status == "queued":
			return nil
		case image.Status != "saving":
			return exception.WithCause("ImageNotActive", fmt.Sprintf("Image %s is in status %s and takes no data.", imageID, image.Status), map[string]any{"image_id": imageID}, nil)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(uploadRetryPause):
		}
	}
}

// rotateBackups deletes the oldest backups of one kind beyond the number to keep
// (nova/compute/manager.py:_rotate_backups).
func (m *Manager) rotateBackups(ctx context.Context, uuid, kind string, keep int) error {
	backups, err := m.Glance.List(ctx, map[string]string{"image_type": "backup", "backup_type": kind, "instance_uuid": uuid})
	if err != nil {
		return glanceError("", fmt.Errorf("list backups: %w", err))
	}
	for _, image := range backups[min(max(keep, 0), len(backups)):] {
		log := reqctx.Log(ctx).WithField("image_id", image.ID)
		if err := m.Glance.Delete(ctx, image.ID); err != nil {
			log.WithError(err).Error("backup beyond the rotation not deleted; the next backup tries again")
			continue
		}
		log.Info("deleted a backup beyond the rotation")
	}
	return nil
}
