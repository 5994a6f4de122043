package compute

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/rpc"
)

// entries are what the journal holds on disk.
func (w *world) entries() map[string]journal.Entry {
	w.t.Helper()
	entries, _, err := w.journal.Entries()
	require.NoError(w.t, err)
	return entries
}

// journaled reads the captured server's entry.
func (w *world) journaled() (journal.Entry, bool) {
	w.t.Helper()
	entry, ok := w.entries()[uuid]
	return entry, ok
}

// interrupted writes the entry that a crash would have left of an operation.
func (w *world) interrupted(method string, args rpc.Args, change func(*journal.Entry)) {
	w.t.Helper()
	entry := journal.NewEntry(user(w.t), method, args)
	if change != nil {
		change(&entry)
	}
	require.NoError(w.t, w.journal.Write(&journal.Operation{UUID: uuid, Method: method}, entry))
}

// TestEntryOfAnotherAgent: a method that is not in this agent's journal does not stop its start.
func TestEntryOfAnotherAgent(t *testing.T) {
	t.Parallel()
	w := built(t)
	w.interrupted("evaporate_instance", nil, nil)
	w.restarted()
	w.start()
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	require.Empty(t, w.entries())
}
