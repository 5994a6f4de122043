package compute

import "github.com/compute-agent/compute-agent/internal/state"

// journaled reads the captured server's journal entry.
func (w *world) journaled() (journalEntry, bool) {
	w.t.Helper()
	entry, ok, err := state.Get[journalEntry](w.DB, journalBucket, uuid)
	if err != nil {
		w.t.Fatal(err)
	}
	return entry, ok
}
