package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/template"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/internal/transfer"
	"github.com/compute-agent/compute-agent/rpc"
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

// rootOffer is the answer of offer_root.
type rootOffer struct {
	Ticket transfer.Ticket `json:"ticket"`
	Layer  bool            `json:"layer"` // only what differs from the image
	Arch   string          `json:"arch"`
	Used   uint64          `json:"used"` // bytes, 0: not known
	// Disks are the ephemeral disks that are offered with it.
	Disks []ephemeral.Disk `json:"disks,omitempty"`
	// Of the record: what the guest calls its ports, and what the image's templates were given.
	Names     map[string]string `json:"names"`
	Templates *template.Vars    `json:"templates"`
}

// arrivals are the root disks that are on their way here, by instance UUID.
type arrivals struct {
	mu   sync.Mutex // guards open
	open map[string]*arrival
}

// arrival is one of them: its first passes are done, and the last comes when the guest has stopped.
type arrival struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the last pass has ended
	left   atomic.Bool   // the agent leaves: its next start waits again
	err    error         // of it; valid when done is closed
}

func (a *arrivals) set(uuid string, one *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		a.open = map[string]*arrival{}
	}
	if one == nil {
		delete(a.open, uuid)
		return
	}
	a.open[uuid] = one
}

func (a *arrivals) of(uuid string) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open[uuid]
}

// leave ends the waits for root disks, which the next start of the agent takes up: nothing is lost but
// the connection.
func (a *arrivals) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range a.open {
		one.left.Store(true)
		one.cancel(errLeaving)
	}
}

// errLeaving ends a wait because the agent does.
var errLeaving = errors.New("the agent stops")

// waits tells whether the rest of a root disk is waited for.
func (a *arrivals) waits(uuid string) bool {
	one := a.of(uuid)
	if one == nil {
		return false
	}
	select {
	case <-one.done:
		return false
	default:
		return true
	}
}

// departures are the root disks that this host offers, by instance UUID.
type departures struct {
	mu     sync.Mutex // guards offers
	offers map[string]*transfer.Offer
}

func (d *departures) set(uuid string, o *transfer.Offer) (before *transfer.Offer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before = d.offers[uuid]
	if d.offers == nil {
		d.offers = map[string]*transfer.Offer{}
	}
	if o == nil {
		delete(d.offers, uuid)
	} else {
		d.offers[uuid] = o
	}
	return before
}

func (d *departures) of(uuid string) *transfer.Offer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.offers[uuid]
}

// agentMethods are what agents ask each other.
func (m *Manager) agentMethods() map[string]rpc.Handler {
	return map[string]rpc.Handler{"offer_root": m.offerRoot, "drop_root": m.dropRoot}
}

// dropRoot tells a destination that a move came to nothing: what has come is removed at once. Whatever is this
// host's by now stays.
func (m *Manager) dropRoot(ctx context.Context, args rpc.Args) (any, error) {
	var uuid, migration string
	for name, into := range map[string]*string{"instance_uuid": &uuid, "migration_uuid": &migration} {
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	ctx = reqctx.WithField(reqctx.WithField(ctx, "instance", uuid), "method", "drop_root")
	m.background(ctx, func(ctx context.Context) {
		unlock, err := m.locks.Lock(ctx, uuid)
		if err != nil {
			return // never: the context has no end
		}
		defer unlock()
		m.Tracker.DropMove(ctx, migration)
		if err := m.abandonIncoming(ctx, uuid, migration, nil); err != nil {
			reqctx.Log(ctx).WithError(err).Error("root disk that is not wanted not removed; the next start tries again")
		}
	})
	return true, nil
}

// offerRoot makes the root disk of an instance of this host available to the host that it is about to
// move to. The request comes over the message bus, as every command to move an instance does.
func (m *Manager) offerRoot(ctx context.Context, args rpc.Args) (any, error) {
	var uuid, migration, fingerprint string
	for name, into := range map[string]*string{"instance_uuid": &uuid, "migration_uuid": &migration, "image_fingerprint": &fingerprint} {
		if err := args.Decode(name, into); err != nil {
			return nil, err
		}
	}
	ctx = reqctx.WithField(reqctx.WithField(ctx, "instance", uuid), "method", "offer_root")
	inst, err := m.Conductor.InstanceByUUID(adminContext(ctx), uuid)
	if err != nil {
		return nil, err
	}
	rec, ok, err := m.record(uuid)
	if err != nil {
		return nil, err
	}
	if !ok || inst.Host != m.opts.Host || inst.TaskState != object.TaskStateResizePrep || rec.Incoming != nil {
		return nil, exception.InstanceInvalidState(uuid, "task_state", inst.TaskState, "offer_root")
	}
	layer := m.sameImage(ctx, rec, fingerprint)
	root := transfer.Tree{Layer: layer, Open: func(ctx context.Context, _ bool) (string, func() error, error) {
		return m.openTree(ctx, rec.Root, layer)
	}}
	source := transfer.Source{IDs: rec.Root.IDs, Trees: append([]transfer.Tree{root}, m.diskTrees(rec)...)}
	if before := m.departures.of(uuid); before != nil {
		before.Close()
	}
	offer, err := m.Transfers.Offer(context.WithoutCancel(ctx), migration, source)
	if err != nil {
		return nil, err
	}
	m.departures.set(uuid, offer)
	used, err := m.usedBytes(ctx, rec.Root, layer)
	beside, besideErr := m.usedOnDisks(ctx, uuid)
	if err := errors.Join(err, besideErr); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("size of the disks not known")
	}
	reqctx.Log(ctx).WithField("layer", layer).WithField("bytes", used+beside).WithField("disks", 1+len(rec.Ephemeral)).Info("disks offered to another host")
	return rootOffer{
		Ticket: offer.Ticket, Layer: layer, Arch: rec.Arch, Used: used + beside, Disks: rec.Ephemeral, Names: rec.Names, Templates: rec.Templates,
	}, nil
}

// sameImage tells whether the other host has the very image that the root disk lies on, and this
// back end keeps the changes apart from it.
func (m *Manager) sameImage(ctx context.Context, rec record, fingerprint string) bool {
	if fingerprint == "" || rec.ImageID == "" {
		return false
	}
	image, ok, err := m.Images.Get(ctx, rec.ImageID)
	if err != nil || !ok || image.Fingerprint != fingerprint || image.Path != rec.Root.ImagePath {
		return false
	}
	_, done, err := m.openLayer(ctx, rec.UUID)
	if err != nil {
		return false
	}
	return done() == nil
}

func (m *Manager) openLayer(ctx context.Context, uuid string) (string, func() error, error) {
	l, ok := m.Roots.(storage.Layered)
	if !ok {
		return "", nil, storage.ErrUnsupported
	}
	return l.Layer(ctx, uuid)
}

// openTree makes what is to be sent, or filled, reachable.
func (m *Manager) openTree(ctx context.Context, root storage.Root, layer bool) (string, func() error, error) {
	if layer {
		return m.openLayer(ctx, root.InstanceID)
	}
	dir, err := m.Roots.Mount(ctx, root)
	return dir, func() error { return nil }, err
}

// usedBytes is what the root disk's content takes at least.
func (m *Manager) usedBytes(ctx context.Context, root storage.Root, layer bool) (uint64, error) {
	if root.SizeGB == 0 {
		return 0, nil // it shares its file system with everything else
	}
	dir, done, err := m.openTree(ctx, root, layer)
	if err != nil {
		return 0, err
	}
	used, err := usedOf(dir)
	return used, errors.Join(err, done())
}

// fetchRunning copies the root disk of an instance that still runs on another host. Then it waits, in the
// background, for the rest.
func (m *Manager) fetchRunning(ctx context.Context, mv *move) error {
	uuid := mv.inst.UUID
	if err := m.clearIncoming(ctx, uuid); err != nil {
		return err
	}
	defer m.Images.Hold(mv.image.ID)() // until it is acquired
	image, imageErr := m.syncImage(ctx, &mv.image)
	if imageErr != nil { // deleted since, perhaps; then everything is copied
		reqctx.Log(ctx).WithError(imageErr).Info("image of an instance that comes here not available")
	}
	limits, err := m.limitsOf(ctx, uuid, mv.flavor)
	if err != nil {
		return err
	}
	fingerprint := image.Fingerprint
	if l, ok := m.Roots.(storage.Layered); !ok || !l.KeepsLayers(storage.Root{Nested: limits.Nested}) {
		fingerprint = "" // what the source's server changed would have nowhere to go: the whole tree is to come
	}
	var offer rootOffer
	err = m.Conductor.CallAgent(ctx, mv.migration.SourceCompute, "offer_root", map[string]any{
		"instance_uuid": uuid, "migration_uuid": mv.migration.UUID, "image_fingerprint": fingerprint,
	}, &offer)
	if err != nil {
		return fmt.Errorf("ask for the root disk: %w", err)
	}
	if usage, err := m.Roots.Usage(ctx); err == nil && offer.Used > usage.Free {
		return fmt.Errorf("%w: the disks hold %d bytes, free are %d", storage.ErrNoSpace, offer.Used, usage.Free)
	}
	rec, err := m.stage(ctx, mv, offer, image)
	if err != nil {
		return err
	}
	fetch, done, err := m.openFetch(ctx, rec)
	if err != nil {
		return err
	}
	if err := fetch.Running(ctx); err != nil {
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
	disks, err := m.arrivingDisks(ctx, mv, offer.Disks)
	if err != nil {
		return record{}, err
	}
	ids, err := m.DB.AllocateRange(uuid, m.opts.IDPool, m.opts.IDsPerInstance)
	if err != nil {
		return record{}, fmt.Errorf("%w: %w", driver.ErrNoResources, err)
	}
	rec := record{
		UUID: uuid, Name: mv.inst.Name(m.opts.InstanceNameTemplate), Created: time.Now().UTC(), Arch: offer.Arch, Names: offer.Names,
		Root:      storage.Root{InstanceID: uuid, ImagePath: m.opts.EmptyImage, SizeGB: limits.RootGB, IDs: ids, Nested: limits.Nested},
		Ephemeral: disks,
		Incoming:  &incoming{Migration: mv.migration.UUID, Ticket: offer.Ticket, Layer: offer.Layer, Disks: len(offer.Disks)},
	}
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
		a.err = protect(func() error { return m.fetchLast(ctx, rec, fetch, done) })
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

// removeArrival removes a root disk that did not come. Whoever cancelled it removes it itself.
func (m *Manager) removeArrival(ctx context.Context, uuid string, a *arrival) error {
	if m.arrivals.of(uuid) != a {
		return nil
	}
	m.arrivals.set(uuid, nil)
	if rec, ok, err := m.record(uuid); err != nil || !ok || rec.Incoming == nil {
		return err
	}
	return m.removeFromHost(ctx, uuid)
}

// abandonIncoming removes what has come of a root disk.
func (m *Manager) abandonIncoming(ctx context.Context, uuid, migration string, cause error) error {
	if a := m.arrivals.of(uuid); a != nil {
		m.arrivals.set(uuid, nil)
		a.cancel(fmt.Errorf("the destination gave up: %w", orUnknown(cause)))
		select {
		case <-a.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	rec, ok, err := m.record(uuid)
	if err != nil || !ok || rec.Incoming == nil || rec.Incoming.Migration != migration {
		return err
	}
	return m.removeFromHost(ctx, uuid)
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("the move is not wanted any more")
	}
	return err
}

// received waits for the end of the last pass, which the source has seen before it sent the instance.
func (m *Manager) received(ctx context.Context, uuid string) (record, error) {
	if a := m.arrivals.of(uuid); a != nil {
		select {
		case <-a.done:
		case <-ctx.Done():
			return record{}, context.Cause(ctx)
		}
		m.arrivals.set(uuid, nil)
		if a.err != nil {
			return record{}, a.err
		}
	}
	rec, ok, err := m.record(uuid)
	if err == nil && (!ok || rec.Incoming != nil && !rec.Incoming.Received) {
		err = fmt.Errorf("the root disk is not on this host: %w", driver.ErrNotFound)
	}
	return rec, err
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
