package state

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/internal/storage"
)

type record struct {
	Name string
	Tags map[string]string
}

func open(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(path)
	require.NoError(t, err)
	return db
}

func TestValues(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.db")
	db := open(t, path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	_, ok, err := Get[record](db, "instances", "a")
	require.NoError(t, err)
	require.False(t, ok)
	all, err := List[record](db, "instances")
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoError(t, Delete(db, "instances", "a"))

	a := record{Name: "a", Tags: map[string]string{"k": "v"}}
	require.NoError(t, Put(db, "instances", "a", a))
	require.NoError(t, Put(db, "instances", "b", record{Name: "old"}))
	require.NoError(t, Put(db, "instances", "b", record{Name: "b"}))
	require.NoError(t, Put(db, "others", "a", 7))
	requireUnwritten(t, db, func() {
		require.NoError(t, Put(db, "instances", "a", a))
		require.NoError(t, Delete(db, "instances", "none"))
		require.NoError(t, Delete(db, "none", "a"))
	})
	require.NoError(t, db.Close())

	db = open(t, path)
	defer db.Close()
	got, ok, err := Get[record](db, "instances", "a")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, a, got)
	all, err = List[record](db, "instances")
	require.NoError(t, err)
	require.Equal(t, map[string]record{"a": a, "b": {Name: "b"}}, all)
	require.NoError(t, Delete(db, "instances", "a"))
	_, ok, err = Get[record](db, "instances", "a")
	require.NoError(t, err)
	require.False(t, ok)

	_, _, err = Get[int](db, "instances", "b")
	require.ErrorContains(t, err, "instances/b")
	_, err = List[int](db, "instances")
	require.ErrorContains(t, err, "decode b")
	require.Error(t, Put(db, "instances", "", a))
	require.ErrorContains(t, Put(db, "instances", "f", func() {}), "encode instances/f")
}

// requireUnwritten: what do does not wait for the disk.
func requireUnwritten(t *testing.T, db *DB, do func()) {
	t.Helper()
	writes := func() int64 {
		stats := db.bolt.Stats()
		return stats.TxStats.GetWrite()
	}
	before := writes()
	require.Positive(t, before)
	do()
	require.Equal(t, before, writes())
}

func TestOpenLocked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.db")
	db := open(t, path)
	defer db.Close()
	start := time.Now()
	_, err := Open(path)
	require.Error(t, err)
	require.Less(t, time.Since(start), lockTimeout+time.Minute)
	_, err = Open(t.TempDir())
	require.Error(t, err)
}

func TestAllocateRange(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "agent.db"))
	defer db.Close()
	pool := []storage.IDRange{{Base: 1_000_000, Size: 3 * 65536}, {Base: 1<<32 - 1000, Size: 1000}}
	a, err := db.AllocateRange("a", pool, 65536)
	require.NoError(t, err)
	require.Equal(t, storage.IDRange{Base: 1_000_000, Size: 65536}, a)
	b, err := db.AllocateRange("b", pool, 65536)
	require.NoError(t, err)
	require.Equal(t, storage.IDRange{Base: 1_000_000 + 65536, Size: 65536}, b)
	again, err := db.AllocateRange("a", pool, 65536)
	require.NoError(t, err)
	require.Equal(t, a, again)
	_, err = db.AllocateRange("a", pool, 1000)
	require.ErrorContains(t, err, "65536")
	_, err = db.AllocateRange("large", pool, 2*65536)
	require.ErrorIs(t, err, ErrNoRange, "what is left is too small")
	_, err = db.AllocateRange("c", pool, 65536)
	require.NoError(t, err)
	_, err = db.AllocateRange("d", pool, 65536)
	require.ErrorIs(t, err, ErrNoRange)
	_, err = db.AllocateRange("last", pool, 1000)
	require.ErrorIs(t, err, ErrNoRange, "the last id, 2^32-1, is no id")
	require.NoError(t, db.ReleaseRange("b"))
	require.NoError(t, db.ReleaseRange("b"))
	d, err := db.AllocateRange("d", pool, 65536)
	require.NoError(t, err)
	require.Equal(t, b, d)
	ranges, err := db.Ranges()
	require.NoError(t, err)
	require.Len(t, ranges, 3)
	for _, bad := range []struct {
		owner string
		size  uint32
	}{{"", 1}, {"x", 0}} {
		_, err = db.AllocateRange(bad.owner, pool, bad.size)
		require.Error(t, err)
	}
}

// TestRangesAreDisjoint: whatever is allocated and released in whatever order,
// from pools that change and overlap, over restarts.
func TestRangesAreDisjoint(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(t.TempDir(), "agent.db")
		db := open(t, path)
		defer func() { _ = db.Close() }()
		db.bolt.NoSync = true
		held := map[string]storage.IDRange{}
		poolOf := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) storage.IDRange {
			return storage.IDRange{
				Base: rapid.SampledFrom([]uint32{1000, 5000, 6500, 1<<32 - 3000, 1<<32 - 1}).Draw(rt, "base"),
				Size: rapid.SampledFrom([]uint32{0, 1, 100, 2000, 5000, 1<<32 - 1}).Draw(rt, "size"),
			}
		}), 1, 3)
		pool := poolOf.Draw(rt, "pool")
		rt.Repeat(map[string]func(*rapid.T){
			"allocate": func(rt *rapid.T) {
				owner := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(rt, "owner")
				size := rapid.SampledFrom([]uint32{1, 50, 100, 1000}).Draw(rt, "size")
				got, err := db.AllocateRange(owner, pool, size)
				if err != nil {
					return
				}
				if have, ok := held[owner]; ok && have != got {
					rt.Fatalf("%s had %v and got %v", owner, have, got)
				}
				held[owner] = got
			},
			"release": func(rt *rapid.T) {
				owner := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(rt, "owner")
				if err := db.ReleaseRange(owner); err != nil {
					rt.Fatal(err)
				}
				delete(held, owner)
			},
			"change the pool": func(rt *rapid.T) { pool = poolOf.Draw(rt, "pool") },
			"restart": func(*rapid.T) {
				_ = db.Close()
				db = open(t, path)
				db.bolt.NoSync = true
			},
			"": func(rt *rapid.T) {
				for owner, r := range held {
					if end := uint64(r.Base) + uint64(r.Size); end >= 1<<32 {
						rt.Fatalf("%s has %v, which ends at %d", owner, r, end)
					}
					for other, o := range held {
						if owner != other && uint64(r.Base) < uint64(o.Base)+uint64(o.Size) && uint64(o.Base) < uint64(r.Base)+uint64(r.Size) {
							rt.Fatalf("%s has %v and %s has %v", owner, r, other, o)
						}
					}
				}
			},
		})
	})
}
