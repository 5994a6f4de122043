package compute

import (
	"context"
	"errors"
	"sync"

	"github.com/compute-agent/compute-agent/imagesync/template"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/internal/transfer"
	"github.com/compute-agent/compute-agent/rpc"
)

// rootOffer is the answer of offer_root.
type rootOffer struct {
	Ticket transfer.Ticket `json:"ticket"`
	Layer  bool            `json:"layer"` // only what differs from the image
	Arch   string          `json:"arch"`
	Used   uint64          `json:"used"` // bytes, 0: not known
	// Disks are the ephemeral disks that are offered with it.
	Disks []ephemeral.Disk `json:"disks,omitempty"`
	// Contentless: the disks of that host have no content, and none comes.
	Contentless bool `json:"contentless,omitempty"`
	// Of the record: what the guest calls its ports, and what the image's templates were given.
	Names     map[string]string `json:"names"`
	Templates *template.Vars    `json:"templates"`
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
	source := transfer.Source{IDs: rec.Root.IDs}
	if !m.contentless() {
		source.Trees = append([]transfer.Tree{root}, m.diskTrees(rec)...)
	}
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
		Contentless: m.contentless(),
	}, nil
}

// contentless tells that this host only pretends to have disks.
func (m *Manager) contentless() bool {
	_, ok := m.Roots.(storage.Contentless)
	return ok
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
	if root.SizeGB == 0 || m.contentless() {
		return 0, nil // it shares its file system with everything else
	}
	dir, done, err := m.openTree(ctx, root, layer)
	if err != nil {
		return 0, err
	}
	used, err := usedOf(dir)
	return used, errors.Join(err, done())
}
