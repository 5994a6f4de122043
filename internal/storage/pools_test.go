package storage_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// sized is a back end of a pool of its own.
type sized struct {
	*backend
	total uint64
}

func (s sized) Usage(context.Context) (storage.Usage, error) {
	return storage.Usage{Total: s.total}, nil
}

// TestPools: a root disk is made in the pool that it names, and everything else finds it there.
func TestPools(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	with := func(name string, total uint64) sized { return sized{&backend{name, map[string]int{}}, total} }
	main, fast, nested, old := with("main", 1), with("fast", 2), with("nested", 3), with("old", 4)
	old.roots["d"] = 1
	b := storage.Pools(storage.Pool{Normal: main, Nested: main}, map[string]storage.Pool{
		"fast": {Normal: fast, Nested: nested, Others: []storage.Backend{old, fast}},
	})
	for id, r := range map[string]storage.Root{"a": {}, "b": {Pool: "fast"}, "c": {Pool: "fast", Nested: true}} {
		r.InstanceID = id
		require.NoError(t, b.Create(ctx, r))
	}
	// What the caller remembers of a root disk is no more than where it is looked for first.
	for id, want := range map[string]sized{"a": main, "b": fast, "c": nested, "d": old} {
		for _, pool := range []string{"", "fast"} {
			path, err := b.Mount(ctx, storage.Root{InstanceID: id, Pool: pool})
			require.NoError(t, err)
			require.Equal(t, "/"+want.name, path)
		}
		devices, err := b.(storage.Devicer).Devices(ctx, id)
		require.NoError(t, err)
		require.Equal(t, []storage.Device{{Number: want.name}}, devices)
		require.NoError(t, b.Grow(ctx, id, 7))
		require.Equal(t, 7, want.roots[id])
	}
	for pool, want := range map[string]uint64{"": 1, "fast": 2} {
		usage, err := b.PoolUsage(ctx, pool)
		require.NoError(t, err)
		require.Equal(t, want, usage.Total)
	}
	usage, err := b.Usage(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1, usage.Total)
	require.Equal(t, "main", b.Name())
	list, err := b.List(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c", "d"}, list)
	for _, id := range list {
		require.NoError(t, b.Delete(ctx, id))
	}
	list, err = b.List(ctx)
	require.NoError(t, err)
	require.Empty(t, list)
}

// TestUnknownPool: nothing is made, and nothing is said about a root disk that nobody could find.
func TestUnknownPool(t *testing.T) {
	t.Parallel()
	main := &backend{"main", map[string]int{}}
	b := storage.Choose(main, main)
	r := storage.Root{InstanceID: "a", Pool: "fast"}
	require.ErrorIs(t, b.Create(t.Context(), r), storage.ErrNoPool)
	_, err := b.Mount(t.Context(), r)
	require.ErrorIs(t, err, storage.ErrNoPool)
	_, err = b.(storage.Pooled).PoolUsage(t.Context(), "fast")
	require.ErrorIs(t, err, storage.ErrNoPool)
	require.False(t, b.(storage.Layered).KeepsLayers(r))
	require.Empty(t, main.roots)
}
