package compute

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// entries are what the journal holds on disk.
func (w *world) entries() map[string]journalEntry {
	w.t.Helper()
	entries, err := state.List[journalEntry](w.DB, journalBucket)
	require.NoError(w.t, err)
	return entries
}

// journaled reads the captured server's entry.
func (w *world) journaled() (journalEntry, bool) {
	w.t.Helper()
	entry, ok := w.entries()[uuid]
	return entry, ok
}

// interrupted writes the entry that a crash would have left of an operation.
func (w *world) interrupted(method string, args rpc.Args, change func(*journalEntry)) {
	w.t.Helper()
	entry := newEntry(user(w.t), method, args)
	if change != nil {
		change(&entry)
	}
	require.NoError(w.t, state.Put(w.DB, journalBucket, uuid, entry))
}

func openDB(t testing.TB) *state.DB {
	t.Helper()
	db, err := state.Open(t.TempDir() + "/agent.db")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// TestOneEntryAnInstance: the entry stays until the last operation that was written has ended.
func TestOneEntryAnInstance(t *testing.T) {
	t.Parallel()
	j := journal{db: openDB(t)}
	method := func() string {
		entry, _, err := state.Get[journalEntry](j.db, journalBucket, uuid)
		require.NoError(t, err)
		return entry.Method
	}
	accept := func(method string) (context.Context, *underway) {
		o := &underway{uuid: uuid, method: method}
		ctx := j.add(t.Context(), o)
		require.NoError(t, j.write(o, newEntry(ctx, method, nil)))
		return ctx, o
	}
	_, older := accept("prep_resize")
	ctx, newer := accept("resize_instance")
	unwritten := &underway{uuid: uuid, method: "unrescue_instance"}
	j.add(t.Context(), unwritten)
	require.Equal(t, "resize_instance", method())
	require.NoError(t, j.drop(uuid))
	require.NoError(t, j.remove(older, false))
	j.forget(unwritten)
	require.Equal(t, "resize_instance", method(), "it is of an operation under way")
	require.NoError(t, ctx.Err())
	require.True(t, j.has(uuid))
	require.False(t, j.building(uuid))
	require.NoError(t, j.remove(newer, false))
	require.Empty(t, method())
	require.Error(t, ctx.Err(), "nothing is left to be cancelled")

	_, kept := accept(buildMethod)
	require.True(t, j.building(uuid))
	require.NoError(t, j.handBack(uuid))
	require.NoError(t, j.remove(kept, true))
	require.Equal(t, buildMethod, method())
	require.False(t, j.has(uuid))
	require.NoError(t, j.drop(uuid))
	require.Empty(t, method())
}

// TestJournalsOfOlderAgents: the entries of an agent with a journal for each kind are taken over, once.
func TestJournalsOfOlderAgents(t *testing.T) {
	t.Parallel()
	j := journal{db: openDB(t)}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	put := func(bucket, key, method string, accepted time.Time) {
		old := map[string]any{"args": rpc.Args{"n": json.RawMessage("1")}, "accepted": accepted, "resumed": 2, "handed_back": bucket == "builds"}
		if method != "" {
			old["method"] = method
		}
		require.NoError(t, state.Put(j.db, bucket, key, old))
	}
	put("builds", "a", "", at)
	put("operations", "b", "rebuild_instance", at)
	put("moves", "c/prep_resize", "", at)
	put("moves", "c/resize_instance", "", at.Add(time.Second))
	for range 2 {
		require.NoError(t, j.adopt())
		entry := func(method string, accepted time.Time, back bool) journalEntry {
			return journalEntry{Method: method, Args: rpc.Args{"n": json.RawMessage("1")}, Accepted: accepted, Resumed: 2, HandedBack: back}
		}
		got, err := state.List[journalEntry](j.db, journalBucket)
		require.NoError(t, err)
		require.Equal(t, map[string]journalEntry{
			"a": entry(buildMethod, at, true), "b": entry("rebuild_instance", at, false),
			"c": entry("resize_instance", at.Add(time.Second), false),
		}, got)
		for _, bucket := range []string{"builds", "operations", "moves"} {
			old, err := state.List[journalEntry](j.db, bucket)
			require.NoError(t, err)
			require.Empty(t, old)
		}
	}
	j.db = closedDB(t)
	require.Error(t, j.adopt())
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
