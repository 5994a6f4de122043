package compute

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// journalBucket holds a journalEntry per instance UUID.
const journalBucket = "journal"

// journalEntry is an operation as it came: arguments and request context, its token and
// passwords included. The database is readable by root alone.
type journalEntry struct {
	Method   string                     `json:"method"`
	Args     rpc.Args                   `json:"args"`
	Context  map[string]json.RawMessage `json:"context"`
	Accepted time.Time                  `json:"accepted"`
	// Resumed counts the starts of the agent that took the operation up again.
	Resumed int `json:"resumed,omitempty"`
	// HandedBack: a build failed and goes, or went, back to the conductor. Another host may have it.
	HandedBack bool `json:"handed_back,omitempty"`
}

// newEntry is the entry of a message that ctx came with.
func newEntry(ctx context.Context, method string, args rpc.Args) journalEntry {
	return journalEntry{Method: method, Args: args, Context: reqctx.From(ctx).Map(), Accepted: time.Now().UTC()}
}

// in gives ctx the request context that the operation came with.
func (e *journalEntry) in(ctx context.Context, uuid string) context.Context {
	return reqctx.WithField(reqctx.With(ctx, reqctx.FromMap(e.Context)), "instance", uuid)
}

// journal holds the operations that were accepted and have not ended: in memory, where a
// delete of their instance finds and cancels them, and on disk for the next start of the
// agent. The broker forgets a message on receipt; this is where an operation lives then. An
// operation is known before it is written, so that a delete that comes right after it finds it.
//
// On disk an instance has one entry. Of two operations the newer takes it: the older has
// nothing left to do but to end (a step of a move that sent the next one to its own host), or
// somebody has reset its task.
type journal struct {
	db   *state.DB
	disk sync.Mutex // serialises changes of the entries, and is held while they are written

	mu  sync.Mutex // guards ops and what is in them
	ops map[*underway]bool
}

// underway is one of these operations.
type underway struct {
	uuid, method string
	cancel       context.CancelCauseFunc
	written      bool // it has the instance's entry, or had it until a newer one took it

	ownPorts     []string // of a build: the user's ports, which outlive the instance
	portsChanged bool     // of a build: Neutron told of a change of the ports, which it may not have seen
}

// add makes an operation known until it is forgotten. A delete cancels the context.
func (j *journal) add(ctx context.Context, o *underway) context.Context {
	ctx, o.cancel = context.WithCancelCause(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ops == nil {
		j.ops = map[*underway]bool{}
	}
	j.ops[o] = true
	return ctx
}

// write gives an operation its instance's entry.
func (j *journal) write(o *underway, entry journalEntry) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	j.mu.Lock()
	o.written = true
	j.mu.Unlock()
	return state.Put(j.db, journalBucket, o.uuid, entry)
}

// remove forgets an operation that was written. With keep its entry stays for the next start of the agent, and
// so does the entry of another operation on the instance.
func (j *journal) remove(o *underway, keep bool) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	defer j.forget(o)
	if keep || j.taken(o.uuid, o) {
		return nil
	}
	return state.Delete(j.db, journalBucket, o.uuid)
}

// forget ends what add began.
func (j *journal) forget(o *underway) {
	j.mu.Lock()
	delete(j.ops, o)
	j.mu.Unlock()
	o.cancel(nil)
}

// taken tells that an operation other than o has the instance's entry. The caller holds disk.
func (j *journal) taken(uuid string, o *underway) bool {
	return slices.ContainsFunc(j.of(uuid), func(other *underway) bool { return other != o && other.written })
}

// of are the operations on an instance that wait or are under way, of the named methods if there are any.
func (j *journal) of(uuid string, methods ...string) []*underway {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []*underway
	for o := range j.ops {
		if o.uuid == uuid && (len(methods) == 0 || slices.Contains(methods, o.method)) {
			found = append(found, o)
		}
	}
	return found
}

// has tells whether there is one.
func (j *journal) has(uuid string, methods ...string) bool { return len(j.of(uuid, methods...)) > 0 }

// building tells whether a build of the instance waits or is under way.
func (j *journal) building(uuid string) bool { return j.has(uuid, buildMethod) }

// cancel ends the operations on an instance, of the named methods if there are any, and
// returns the ports that the users of its builds brought.
func (j *journal) cancel(uuid string, cause error, methods ...string) (ownPorts []string) {
	for _, o := range j.of(uuid, methods...) {
		o.cancel(cause)
		ownPorts = append(ownPorts, o.ownPorts...)
	}
	return ownPorts
}

// portsChanged notes a change of an instance's ports for the end of its build; false: it is
// not being built.
func (j *journal) portsChanged(uuid string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	found := false
	for o := range j.ops {
		if o.uuid == uuid && o.method == buildMethod {
			o.portsChanged, found = true, true
		}
	}
	return found
}

// handBack notes that a build leaves this host: from now on a crash must not take it up here.
func (j *journal) handBack(uuid string) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	entry, ok, err := state.Get[journalEntry](j.db, journalBucket, uuid)
	if err != nil || !ok || entry.Method != buildMethod {
		return err
	}
	entry.HandedBack = true
	return state.Put(j.db, journalBucket, uuid, entry)
}

// drop removes an instance's entry, unless an operation of this process has it.
func (j *journal) drop(uuid string) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	if j.taken(uuid, nil) {
		return nil
	}
	return state.Delete(j.db, journalBucket, uuid)
}

// adopt takes over the entries of an agent that kept a journal for each kind of operation:
// builds by instance UUID, operations so too and with their method, moves by "UUID/method".
func (j *journal) adopt() error {
	for _, old := range []string{"builds", "operations", "moves"} {
		entries, err := state.List[journalEntry](j.db, old)
		if err != nil {
			return err
		}
		for key, entry := range entries {
			uuid, step, _ := strings.Cut(key, "/")
			entry.Method = cmp.Or(entry.Method, step, buildMethod)
			newer, ok, err := state.Get[journalEntry](j.db, journalBucket, uuid)
			if err == nil && (!ok || newer.Accepted.Before(entry.Accepted)) {
				err = state.Put(j.db, journalBucket, uuid, entry)
			}
			if err != nil {
				return err
			}
			if err := state.Delete(j.db, old, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// accept journals an operation and runs it apart from the message that asked for it: with the
// message's request context, but neither its deadline nor its cancellation. run hears what kept
// the entry from being written. It tells whether the operation's outcome, good or bad, is where
// it belongs; if not, the next start of the agent takes the operation up again.
func (m *Manager) accept(ctx context.Context, o *underway, entry journalEntry, run func(ctx context.Context, unwritten error) (settled bool)) {
	ctx = reqctx.WithField(reqctx.WithField(context.WithoutCancel(ctx), "instance", o.uuid), "method", o.method)
	ctx = m.journal.add(ctx, o)
	unwritten := m.journal.write(o, entry)
	m.running.run(func() { m.end(ctx, o, run(ctx, unwritten)) })
}

// end takes an operation out of the journal. One that is not settled stays there for the next start.
func (m *Manager) end(ctx context.Context, o *underway, settled bool) {
	if err := m.journal.remove(o, !settled); err != nil {
		reqctx.Log(ctx).WithError(err).Error("operation not removed from the journal")
	}
	if o.portsChanged { // nobody else has the operation any more
		m.refreshBuilt(adminContext(context.WithoutCancel(ctx)), o.uuid)
	}
}
