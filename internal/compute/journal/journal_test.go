package journal

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

const uuid = "11111111-2222-4333-8444-555555555555"

func openDB(t testing.TB) *state.DB {
	t.Helper()
	db, err := state.Open(t.TempDir() + "/agent.db")
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestOneEntryAnInstance: the entry stays until the last operation that was written has ended.
func TestOneEntryAnInstance(t *testing.T) {
	t.Parallel()
	j := New(openDB(t))
	method := func() string {
		entry, _, err := state.Get[Entry](j.db, bucket, uuid)
		require.NoError(t, err)
		return entry.Method
	}
	accept := func(method string) (context.Context, *Operation) {
		o := &Operation{UUID: uuid, Method: method}
		ctx := j.Add(t.Context(), o)
		require.NoError(t, j.Write(o, NewEntry(ctx, method, nil)))
		return ctx, o
	}
	_, older := accept("prep_resize")
	ctx, newer := accept("resize_instance")
	unwritten := &Operation{UUID: uuid, Method: "unrescue_instance"}
	j.Add(t.Context(), unwritten)
	require.Equal(t, "resize_instance", method())
	require.NoError(t, j.Drop(uuid))
	require.NoError(t, j.Remove(older, false))
	j.Forget(unwritten)
	require.Equal(t, "resize_instance", method(), "it is of an operation under way")
	require.NoError(t, ctx.Err())
	require.True(t, j.Has(uuid))
	require.False(t, j.Building(uuid))
	require.NoError(t, j.Remove(newer, false))
	require.Empty(t, method())
	require.Error(t, ctx.Err(), "nothing is left to be cancelled")

	_, kept := accept(BuildMethod)
	require.True(t, j.Building(uuid))
	require.NoError(t, j.HandBack(uuid))
	require.NoError(t, j.Remove(kept, true))
	require.Equal(t, BuildMethod, method())
	require.False(t, j.Has(uuid))
	require.NoError(t, j.Drop(uuid))
	require.Empty(t, method())
}

// TestJournalsOfOlderAgents: the entries of an agent with a journal for each kind are taken over, once.
func TestJournalsOfOlderAgents(t *testing.T) {
	t.Parallel()
	j := New(openDB(t))
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
		require.NoError(t, j.Adopt())
		entry := func(method string, accepted time.Time, back bool) Entry {
			return Entry{Method: method, Args: rpc.Args{"n": json.RawMessage("1")}, Accepted: accepted, Resumed: 2, HandedBack: back}
		}
		got, err := state.List[Entry](j.db, bucket)
		require.NoError(t, err)
		require.Equal(t, map[string]Entry{
			"a": entry(BuildMethod, at, true), "b": entry("rebuild_instance", at, false),
			"c": entry("resize_instance", at.Add(time.Second), false),
		}, got)
		for _, bucket := range []string{"builds", "operations", "moves"} {
			old, err := state.List[Entry](j.db, bucket)
			require.NoError(t, err)
			require.Empty(t, old)
		}
	}
	require.NoError(t, j.db.Close())
	require.Error(t, j.Adopt())
}
