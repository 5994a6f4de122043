// Package journal holds the operations that outlive the message that asked for them: builds, rebuilds, snapshots, steps of
// moves and whatever else runs apart from it.
//
// An operation is there from its acceptance to its end: in memory, where a delete of its instance finds and cancels
// it, and on disk for the next start of the agent. The broker forgets a message on receipt; this is where an operation lives then.
package journal

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

// bucket holds an Entry per instance UUID.
const bucket = "journal"

// BuildMethod is the method of a build on the wire.
const BuildMethod = "build_and_run_instance"

// Entry is an operation as it came: arguments and request context, its token and
// passwords included. The database is readable by root alone.
type Entry struct {
	Method   string                     `json:"method"`
	Args     rpc.Args                   `json:"args"`
	Context  map[string]json.RawMessage `json:"context"`
	Accepted time.Time                  `json:"accepted"`
	// Resumed counts the starts of the agent that took the operation up again.
	Resumed int `json:"resumed,omitempty"`
	// HandedBack: a build failed and goes, or went, back to the conductor. Another host may have it.
	HandedBack bool `json:"handed_back,omitempty"`
}

// NewEntry is the entry of a message that ctx came with.
func NewEntry(ctx context.Context, method string, args rpc.Args) Entry {
	return Entry{Method: method, Args: args, Context: reqctx.From(ctx).Map(), Accepted: time.Now().UTC()}
}

// In gives ctx the request context that the operation came with.
func (e *Entry) In(ctx context.Context, uuid string) context.Context {
	return reqctx.WithField(reqctx.With(ctx, reqctx.FromMap(e.Context)), "instance", uuid)
}

// Journal holds the operations that were accepted and have not ended. An operation is known
// before it is written, so that a delete that comes right after it finds it.
//
// On disk an instance has one entry. Of two operations the newer takes it: the older has
// nothing left to do but to end (a step of a move that sent the next one to its own host), or
// somebody has reset its task.
type Journal struct {
	db   *state.DB
	disk sync.Mutex // serialises changes of the entries, and is held while they are written

	mu  sync.Mutex // guards ops and what is in them
	ops map[*Operation]bool
}

// New returns the journal of an agent's database.
func New(db *state.DB) *Journal {
	return &Journal{db: db, ops: map[*Operation]bool{}}
}

// Operation is one of these operations.
type Operation struct {
	UUID     string // of the instance
	Method   string
	OwnPorts []string // of a build: the user's ports, which outlive the instance

	cancel       context.CancelCauseFunc
	written      bool // it has the instance's entry, or had it until a newer one took it
	portsChanged bool // of a build: Neutron told of a change of the ports, which it may not have seen
}

// PortsChanged tells of a build that has ended whether Neutron told meanwhile of a change of its ports.
func (o *Operation) PortsChanged() bool { return o.portsChanged }

// Add makes an operation known until it is forgotten. A delete cancels the context.
func (j *Journal) Add(ctx context.Context, o *Operation) context.Context {
	ctx, o.cancel = context.WithCancelCause(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ops[o] = true
	return ctx
}

// Write gives an operation its instance's entry.
func (j *Journal) Write(o *Operation, entry Entry) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	j.mu.Lock()
	o.written = true
	j.mu.Unlock()
	return state.Put(j.db, bucket, o.UUID, entry)
}

// Remove forgets an operation that was written. With keep its entry stays for the next start of the agent, and
// so does the entry of another operation on the instance.
func (j *Journal) Remove(o *Operation, keep bool) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	defer j.Forget(o)
	if keep || j.taken(o.UUID, o) {
		return nil
	}
	return state.Delete(j.db, bucket, o.UUID)
}

// HandOver gives an operation to the next start of the agent. It was no fault of the operation that this one ended.
func (j *Journal) HandOver(o *Operation) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	entry, ok, err := state.Get[Entry](j.db, bucket, o.UUID)
	if err != nil || !ok || entry.Method != o.Method || entry.Resumed == 0 {
		return err
	}
	entry.Resumed = 0
	return state.Put(j.db, bucket, o.UUID, entry)
}

// Forget ends what Add began.
func (j *Journal) Forget(o *Operation) {
	j.mu.Lock()
	delete(j.ops, o)
	j.mu.Unlock()
	o.cancel(nil)
}

// taken tells that an operation other than o has the instance's entry. The caller holds disk.
func (j *Journal) taken(uuid string, o *Operation) bool {
	return slices.ContainsFunc(j.of(uuid), func(other *Operation) bool { return other != o && other.written })
}

// of are the operations on an instance that wait or are under way, of the named methods if there are any.
func (j *Journal) of(uuid string, methods ...string) []*Operation {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []*Operation
	for o := range j.ops {
		if o.UUID == uuid && (len(methods) == 0 || slices.Contains(methods, o.Method)) {
			found = append(found, o)
		}
	}
	return found
}

// Has tells whether there is one.
func (j *Journal) Has(uuid string, methods ...string) bool { return len(j.of(uuid, methods...)) > 0 }

// Building tells whether a build of the instance waits or is under way.
func (j *Journal) Building(uuid string) bool { return j.Has(uuid, BuildMethod) }

// Cancel ends the operations on an instance, of the named methods if there are any, and
// returns the ports that the users of its builds brought.
func (j *Journal) Cancel(uuid string, cause error, methods ...string) (ownPorts []string) {
	for _, o := range j.of(uuid, methods...) {
		o.cancel(cause)
		ownPorts = append(ownPorts, o.OwnPorts...)
	}
	return ownPorts
}

// PortsChanged notes a change of an instance's ports for the end of its build; false: it is
// not being built.
func (j *Journal) PortsChanged(uuid string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	found := false
	for o := range j.ops {
		if o.UUID == uuid && o.Method == BuildMethod {
			o.portsChanged, found = true, true
		}
	}
	return found
}

// HandBack notes that a build leaves this host: from now on a crash must not take it up here.
func (j *Journal) HandBack(uuid string) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	entry, ok, err := state.Get[Entry](j.db, bucket, uuid)
	if err != nil || !ok || entry.Method != BuildMethod {
		return err
	}
	entry.HandedBack = true
	return state.Put(j.db, bucket, uuid, entry)
}

// Entries are the entries on disk by instance UUID, and those that cannot be read.
func (j *Journal) Entries() (entries map[string]Entry, damaged map[string]error, err error) {
	return state.ListReadable[Entry](j.db, bucket)
}

// Drop removes an instance's entry, unless an operation of this process has it.
func (j *Journal) Drop(uuid string) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	if j.taken(uuid, nil) {
		return nil
	}
	return state.Delete(j.db, bucket, uuid)
}

// Adopt takes over the entries of an agent that kept a journal for each kind of operation:
// builds by instance UUID, operations so too and with their method, moves by "UUID/method".
func (j *Journal) Adopt() error {
	for _, old := range []string{"builds", "operations", "moves"} {
		entries, err := state.List[Entry](j.db, old)
		if err != nil {
			return err
		}
		for key, entry := range entries {
			uuid, step, _ := strings.Cut(key, "/")
			entry.Method = cmp.Or(entry.Method, step, BuildMethod)
			newer, ok, err := state.Get[Entry](j.db, bucket, uuid)
			if err == nil && (!ok || newer.Accepted.Before(entry.Accepted)) {
				err = state.Put(j.db, bucket, uuid, entry)
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
