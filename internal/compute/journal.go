package compute

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// journalBucket holds a journalEntry per instance UUID whose build was accepted and has
// not ended. The broker forgets a message on receipt; this is where a build lives then.
const journalBucket = "builds"

// journalEntry is a build as it came: arguments and request context, its token and
// the admin password included. The database is readable by root alone.
type journalEntry struct {
	Args     rpc.Args                   `json:"args"`
	Context  map[string]json.RawMessage `json:"context"`
	Accepted time.Time                  `json:"accepted"`
	// Resumed counts the starts of the agent that took the build up again.
	Resumed int `json:"resumed,omitempty"`
	// HandedBack: the build failed and goes, or went, back to the conductor. Another host may have it.
	HandedBack bool `json:"handed_back,omitempty"`
}

// inflight are the builds that were accepted and have not ended, in memory and in the
// journal. A build is known here before it is journaled, so that a delete that comes
// right after it finds it.
type inflight struct {
	db *state.DB

	disk sync.Mutex // serialises changes of the journal, and is held while they are written

	mu     sync.Mutex // guards builds and what is in them
	builds map[*acceptedBuild]bool
}

// acceptedBuild is one of them.
type acceptedBuild struct {
	request *buildRequest
	cancel  context.CancelCauseFunc
	changed bool // Neutron told of a change of the ports, which the build may not have seen
}

// add makes a build known and writes it to the journal. It is known, too, when that fails.
func (f *inflight) add(b *acceptedBuild, entry journalEntry) error {
	f.mu.Lock()
	f.builds[b] = true
	f.mu.Unlock()
	f.disk.Lock()
	defer f.disk.Unlock()
	return state.Put(f.db, journalBucket, b.request.Instance.UUID, entry)
}

// remove forgets a build; with keep its journal entry stays for the next start of the
// agent. So does the entry of another build of the same instance.
func (f *inflight) remove(b *acceptedBuild, keep bool) error {
	uuid := b.request.Instance.UUID
	f.disk.Lock()
	defer f.disk.Unlock()
	f.mu.Lock()
	delete(f.builds, b)
	f.mu.Unlock()
	if keep || f.has(uuid) {
		return nil
	}
	return state.Delete(f.db, journalBucket, uuid)
}

// has tells whether a build of the instance is waiting or under way.
func (f *inflight) has(uuid string) bool { return len(f.of(uuid)) > 0 }

func (f *inflight) of(uuid string) []*acceptedBuild {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*acceptedBuild
	for b := range f.builds {
		if b.request.Instance.UUID == uuid {
			found = append(found, b)
		}
	}
	return found
}

// portsChanged notes a change of an instance's ports for the end of its build; false: it
// is not being built.
func (f *inflight) portsChanged(uuid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := false
	for b := range f.builds {
		if b.request.Instance.UUID == uuid {
			b.changed, found = true, true
		}
	}
	return found
}

// cancel ends the builds of an instance, if there are any, and returns the ports that
// their users brought: they outlive the instance.
func (f *inflight) cancel(uuid string, cause error) (ownPorts []string) {
	for _, b := range f.of(uuid) {
		b.cancel(cause)
		ownPorts = append(ownPorts, b.request.ownPorts()...)
	}
	return ownPorts
}

// handBack notes that a build leaves this host: from now on a crash must not take it up here.
func (f *inflight) handBack(uuid string) error {
	f.disk.Lock()
	defer f.disk.Unlock()
	entry, ok, err := state.Get[journalEntry](f.db, journalBucket, uuid)
	if err != nil || !ok {
		return err
	}
	entry.HandedBack = true
	return state.Put(f.db, journalBucket, uuid, entry)
}

// startBuild accepts a build: it makes it known, journals it and runs it in the
// background, with the request context of ctx but neither its deadline nor its cancellation.
func (m *Manager) startBuild(ctx context.Context, r *buildRequest, entry journalEntry) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	b := &acceptedBuild{request: r, cancel: cancel}
	if err := m.inflight.add(b, entry); err != nil && r.refused == nil {
		r.refused = err // what cannot be journaled is not begun; another host may do better
	}
	m.running.run(func() {
		defer cancel(nil)
		ctx := reqctx.WithField(reqctx.WithField(ctx, "instance", r.Instance.UUID), "method", "build_and_run_instance")
		settled := m.build(ctx, r)
		if err := m.inflight.remove(b, !settled); err != nil {
			reqctx.Log(ctx).WithError(err).Error("build not removed from the journal")
		}
		if b.changed { // nobody else has the build any more
			m.refreshBuilt(adminContext(context.WithoutCancel(ctx)), r.Instance.UUID)
		}
	})
}
