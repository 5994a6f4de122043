package compute

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/vif"
)

// Leftover is what there is on this host of an instance that nova does not have here.
type Leftover struct {
	Instance  string   // UUID
	Has       []string // in words
	Why       string   // what nova says of the instance
	Removable bool     // it is nobody's
	Removed   bool
	Err       error // why it could not be judged, or removed
}

// remains are what there is on this host of an instance.
type remains struct {
	has        []string // that this agent knows of, in words
	references []imageReference
	links      []vif.Marked // that no record has, whoever made them
}

// Leftovers looks for what is on this host without an instance of this host's, and removes what is nobody's unless dry. A start and
// a periodic task do the same without being asked, but for links that no record has; this also tells what they leave alone, and why.
func (m *Manager) Leftovers(ctx context.Context, dry bool) ([]Leftover, error) {
	ctx = adminContext(ctx)
	all, err := m.remains(ctx)
	if err != nil {
		return nil, err
	}
	// After what there is: what has come meanwhile is no leftover.
	here, err := m.Conductor.InstancesByHost(ctx, m.opts.Host)
	if err != nil {
		return nil, fmt.Errorf("list this host's instances: %w", err)
	}
	for _, inst := range here {
		delete(all, inst.UUID)
	}
	found := []Leftover{}
	for _, uuid := range slices.Sorted(maps.Keys(all)) {
		r := all[uuid]
		l := Leftover{Instance: uuid, Has: r.words()}
		if m.judgeLeftover(reqctx.WithField(ctx, "instance", uuid), &l, r, dry) {
			found = append(found, l)
		}
	}
	return found, nil
}

// remains are what there is on this host by the instance's UUID.
func (m *Manager) remains(ctx context.Context) (map[string]*remains, error) {
	all := map[string]*remains{}
	of := func(uuid string) *remains {
		if all[uuid] == nil {
			all[uuid] = &remains{}
		}
		return all[uuid]
	}
	traces, err := m.traces(ctx)
	if err != nil {
		return nil, err
	}
	for uuid, has := range traces {
		of(uuid).has = has
	}
	ranges, err := m.DB.Ranges()
	if err != nil {
		return nil, err
	}
	for uuid := range ranges {
		of(uuid).has = append(of(uuid).has, "id range")
	}
	references, err := m.imageReferences(ctx)
	if err != nil {
		return nil, err
	}
	for uuid, uses := range references {
		of(uuid).has, of(uuid).references = append(of(uuid).has, "use of an image"), uses
	}
	links, err := m.looseLinks(ctx)
	if err != nil {
		return nil, err
	}
	for uuid, loose := range links {
		of(uuid).links = loose
	}
	return all, nil
}

// words are all that there is.
func (r *remains) words() []string {
	words := slices.Clone(r.has)
	for _, link := range r.links {
		words = append(words, link.String())
	}
	return words
}

// localInstances are the UUIDs for which anything exists on this host.
func (m *Manager) localInstances(ctx context.Context) (map[string]bool, error) {
	traces, err := m.traces(ctx)
	local := make(map[string]bool, len(traces))
	for uuid := range traces {
		local[uuid] = true
	}
	return local, err
}

// traces are what exists on this host by the instance's UUID, in words.
func (m *Manager) traces(ctx context.Context) (map[string][]string, error) {
	traces := map[string][]string{}
	add := func(uuid, what string) {
		if !slices.Contains(traces[uuid], what) {
			traces[uuid] = append(traces[uuid], what)
		}
	}
	records, damaged, err := state.ListReadable[record](m.DB, recordBucket)
	if err != nil {
		return nil, err
	}
	for uuid := range damaged {
		add(uuid, "damaged record")
	}
	for uuid, r := range records {
		add(uuid, "record")
		for _, v := range r.VIFs {
			add(uuid, "port "+v.PortID)
		}
	}
	specs, err := m.Driver.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range specs {
		add(s.UUID, "container "+s.Name)
	}
	for what, list := range map[string]func(context.Context) ([]string, error){"root disk": m.Roots.List, "ephemeral disk": m.Ephemeral.List} {
		disks, err := list(ctx)
		if err != nil {
			return nil, err
		}
		for _, id := range disks {
			add(storage.Owner(id), what)
		}
	}
	return traces, nil
}

// imageReference is a use of an image of the store.
type imageReference struct{ image, user string }

// imageReferences are the uses of images by the instances' UUIDs.
func (m *Manager) imageReferences(ctx context.Context) (map[string][]imageReference, error) {
	images, err := m.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	references := map[string][]imageReference{}
	for _, image := range images {
		for _, user := range image.Instances {
			uuid := instanceOf(user)
			references[uuid] = append(references[uuid], imageReference{image.ID, user})
		}
	}
	return references, nil
}

// judgeLeftover asks nova about an instance and, unless dry, removes what is left of it; false: it is no leftover.
func (m *Manager) judgeLeftover(ctx context.Context, l *Leftover, r *remains, dry bool) bool {
	unlock, err := m.locks.Lock(ctx, l.Instance)
	if err != nil {
		l.Err = err
		return true
	}
	defer unlock()
	if m.journal.Building(l.Instance) {
		return false
	}
	inst, err := m.Conductor.InstanceByUUID(reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes")), l.Instance)
	switch {
	case exception.Is(err, "InstanceNotFound"):
		l.Why = "nova does not know it"
		return true
	case err != nil:
		l.Err = err
		return true
	}
	gone := inst.Deleted || inst.VMState == object.VMStateDeleted
	if !gone && inst.Host != "" {
		l.Why = "nova has it on host " + inst.Host
		return inst.Host != m.opts.Host // it has come meanwhile
	}
	if l.Why = "deleted"; inst.Host == "" && !inst.Deleted {
		l.Why = "nova has it on no host"
	}
	switch {
	case m.spared(inst) && m.opts.RunningDeletedAction != "reap":
		l.Why += "; running_deleted_instance_action is " + m.opts.RunningDeletedAction
		return true
	case m.spared(inst):
		l.Why += "; running_deleted_instance_timeout is not over"
		return true
	}
	links, kept := r.freeLinks(gone)
	l.Why += kept
	l.Removable = len(r.has) > 0 || links
	if dry || !l.Removable {
		return true
	}
	reqctx.Log(ctx).Warning("removing what is left of an instance, as asked for")
	l.Err = m.removeRemains(ctx, l.Instance, r, links)
	l.Removed = l.Err == nil
	return true
}

// removeRemains removes what is left of an instance. Its links come last: a guest of this agent's has to end before.
func (m *Manager) removeRemains(ctx context.Context, uuid string, r *remains, links bool) error {
	var err error
	if len(r.has) > 0 {
		err = m.removeFromHost(ctx, uuid)
	}
	for _, use := range r.references {
		err = errors.Join(err, m.releaseImage(use.image, use.user))
	}
	if links && err == nil {
		err = m.removeLooseLinks(ctx, uuid)
	}
	return err
}
