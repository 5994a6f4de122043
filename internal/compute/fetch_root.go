package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/transfer"
)

// incoming is what a record says of a root disk that is on its way here. The ticket is a secret;
// the database is readable by root alone.
type incoming struct {
	Migration string          `json:"migration"`
	Ticket    transfer.Ticket `json:"ticket"`
	Layer     bool            `json:"layer"`
	Disks     int             `json:"disks,omitempty"` // ephemeral disks that come with it, the first of the record's
	// Received: everything is here, and on disk.
	Received bool `json:"received,omitempty"`
}

// fetchRunning copies the root disk of an instance that still runs on another host. Then it waits, in the
// background, for the rest.
func (m *Manager) fetchRunning(ctx context.Context, mv *move) error {
	uuid := mv.inst.UUID
	if err := m.clearIncoming(ctx, uuid); err != nil {
		return err
	}
	defer m.Images.Hold(mv.image.ID)() // until it is acquired
	// Nothing is to be proven again: the source gives its server's changes only to the image that it has itself.
	image, imageErr := m.syncImage(ctx, &mv.image, nil)
	if errors.Is(imageErr, errLeaving) {
		return imageErr
	}
	if imageErr != nil { // deleted since, perhaps; then everything is copied
		reqctx.Log(ctx).WithError(imageErr).Info("image of an instance that comes here not available")
	}
	limits, err := m.limitsOf(ctx, uuid, mv.flavor)
	if err != nil {
		return err
	}
	pool, err := m.poolOfMove(mv)
	if err != nil {
		return err
	}
	fingerprint := image.Fingerprint
	if l, ok := m.Roots.(storage.Layered); !ok || !l.KeepsLayers(storage.Root{Nested: limits.Nested, Pool: pool}) {
		fingerprint = "" // what the source's server changed would have nowhere to go: the whole tree is to come
	}
	var offer rootOffer
	err = m.Conductor.CallAgent(ctx, mv.migration.SourceCompute, "offer_root", map[string]any{
		"instance_uuid": uuid, "migration_uuid": mv.migration.UUID, "image_fingerprint": fingerprint,
	}, &offer)
	if err != nil {
		return fmt.Errorf("ask for the root disk: %w", err)
	}
	if offer.Contentless != m.contentless() {
		return fmt.Errorf("%w: of this host and %s one only pretends to have disks", storage.ErrUnsupported, mv.migration.SourceCompute)
	}
	if free, err := m.freeFor(ctx, pool, len(offer.Disks) > 0); err == nil && offer.Used > free {
		return fmt.Errorf("%w: the disks hold %d bytes, free are %d", storage.ErrNoSpace, offer.Used, free)
	}
	rec, err := m.stage(ctx, mv, offer, image)
	if err != nil {
		return err
	}
	fetch, done, err := m.openFetch(ctx, rec)
	if err != nil {
		return err
	}
	err = m.await(ctx, fetch.Running)
	if errors.Is(err, errLeaving) {
		fetch.Close(nil) // the source is not to give up
		return errors.Join(err, done())
	}
	if err != nil {
		fetch.Close(err)
		return errors.Join(fetchError(err), done())
	}
	m.fetchRest(ctx, rec, fetch, done)
	return nil
}

// fetchError makes a full disk recognisable.
func fetchError(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", storage.ErrNoSpace, err)
	}
	return fmt.Errorf("copy root disk: %w", err)
}

// clearIncoming removes what an interrupted attempt left; anything else of the instance that is
// here is not a move's to remove.
func (m *Manager) clearIncoming(ctx context.Context, uuid string) error {
	rec, ok, err := m.record(uuid)
	if err != nil {
		return err
	}
	if ok && rec.Incoming == nil {
		return fmt.Errorf("this host has the instance already: %w", driver.ErrExists)
	}
	if !ok {
		return nil
	}
	return m.removeFromHost(ctx, uuid)
}

// stage makes the disks that are to be filled. Without the image the root disk lies on an empty one.
func (m *Manager) stage(ctx context.Context, mv *move, offer rootOffer, image imagesync.Image) (record, error) {
	uuid := mv.inst.UUID
	limits, err := m.limitsOf(ctx, uuid, mv.flavor)
	if err == nil {
		err = m.checkMovedImage(mv, image.Metadata, limits)
	}
	if err != nil {
		return record{}, err
	}
	pool, err := m.poolOfMove(mv)
	if err != nil {
		return record{}, err
	}
	disks, err := m.arrivingDisks(ctx, mv, offer.Disks)
	if err != nil {
		return record{}, err
	}
	shares, err := sharesOf(uuid, mv.flavor)
	if err != nil {
		return record{}, err
	}
	ids, err := m.DB.AllocateRange(uuid, m.opts.IDPool, m.opts.IDsPerInstance)
	if err != nil {
		return record{}, fmt.Errorf("%w: %w", driver.ErrNoResources, err)
	}
	rec := record{
		UUID: uuid, Name: mv.inst.Name(m.opts.InstanceNameTemplate), Created: time.Now().UTC(), Arch: offer.Arch, Names: offer.Names,
		Root:      storage.Root{InstanceID: uuid, ImagePath: m.opts.EmptyImage, SizeGB: limits.RootGB, IDs: ids, Nested: limits.Nested, Pool: pool},
		Ephemeral: disks, Shares: shares,
		Incoming: &incoming{Migration: mv.migration.UUID, Ticket: offer.Ticket, Layer: offer.Layer, Disks: len(offer.Disks)},
	}
	rec.describe(mv.inst)
	rec.Flavor = mv.flavor.Name
	if offer.Layer {
		rec.ImageID, rec.Root.ImagePath, rec.Templates = mv.image.ID, image.Path, offer.Templates
	} else if err := os.MkdirAll(m.opts.EmptyImage, 0o755); err != nil { //nolint:gosec // it is a root file system's root
		return rec, err
	}
	if err := m.saveRecord(rec); err != nil {
		return rec, err
	}
	if offer.Layer {
		if err := m.Images.Acquire(rec.ImageID, uuid); err != nil {
			return rec, err
		}
	}
	if err := m.Roots.Create(ctx, rec.Root); err != nil {
		return rec, fmt.Errorf("create root disk: %w", err)
	}
	_, err = m.makeDisks(ctx, uuid, ids, disks)
	return rec, err
}

func (m *Manager) openFetch(ctx context.Context, rec record) (*transfer.Fetch, func() error, error) {
	if m.contentless() {
		fetch, err := transfer.NewFetch(rec.Incoming.Ticket, transfer.Target{IDs: rec.Root.IDs})
		return fetch, func() error { return nil }, err
	}
	dir, done, err := m.openTree(ctx, rec.Root, rec.Incoming.Layer)
	if err != nil {
		return nil, nil, fmt.Errorf("open root disk: %w", err)
	}
	target := transfer.Target{IDs: rec.Root.IDs, Dirs: []transfer.TargetDir{{Path: dir, Layer: rec.Incoming.Layer}}}
	paths, err := m.mountedDisks(ctx, rec.UUID, rec.Incoming.Disks)
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	for _, path := range paths {
		target.Dirs = append(target.Dirs, transfer.TargetDir{Path: path})
	}
	fetch, err := transfer.NewFetch(rec.Incoming.Ticket, target)
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return fetch, done, nil
}

// fetchRest waits for the last pass in the background, until the source gives the root disk up.
func (m *Manager) fetchRest(ctx context.Context, rec record, fetch *transfer.Fetch, done func() error) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	a := &arrival{cancel: cancel, done: make(chan struct{})}
	m.arrivals.set(rec.UUID, a)
	m.running.run(func() {
		defer close(a.done)
		defer cancel(nil)
		a.err = protect(ctx, func() error { return m.fetchLast(ctx, rec, fetch, done) })
		if a.err == nil || a.left.Load() {
			return
		}
		// The move ended without this host: the source has the instance, and tells why.
		reqctx.Log(ctx).WithError(a.err).Warning("root disk did not come; removing what is here")
		if err := m.removeArrival(context.WithoutCancel(ctx), rec.UUID, a); err != nil {
			reqctx.Log(ctx).WithError(err).Error("root disk that did not come not removed; the next start tries again")
		}
	})
}

func (m *Manager) fetchLast(ctx context.Context, rec record, fetch *transfer.Fetch, done func() error) error {
	err := fetch.Last(ctx)
	if errors.Is(err, errLeaving) {
		fetch.Close(nil) // the source is not to give up
	} else {
		fetch.Close(err)
	}
	if err := errors.Join(err, done()); err != nil {
		return fetchError(err)
	}
	rec.Incoming.Received = true
	return m.saveRecord(rec)
}

// limitsOf translates a flavor for an instance.
func (m *Manager) limitsOf(ctx context.Context, uuid string, f *object.Flavor) (flavor.Limits, error) {
	return m.limits(ctx, &object.Instance{UUID: uuid, Flavor: f})
}

// moveInfo is disk_info of finish_resize: how the root disk came to the destination.
type moveInfo struct {
	Format string `json:"format"`
}

const moveFormat = "compute-agent/1"

func diskInfo() string {
	b, _ := json.Marshal(moveInfo{Format: moveFormat}) // it cannot fail
	return string(b)
}
