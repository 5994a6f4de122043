//go:build functional

package storage_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/dir"
	"github.com/compute-agent/compute-agent/internal/storage/overlay"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/storagetest"
)

// everything is what a back end of pools can do.
type everything interface {
	storage.Pooled
	storage.Copier
	storage.Runner
	storage.Devicer
	storage.Layered
	storage.Shrinker
}

// inPool asks for every root disk in one pool.
type inPool struct {
	everything
	pool string
}

func (p inPool) of(r storage.Root) storage.Root {
	r.Pool = p.pool
	return r
}

func (p inPool) Create(ctx context.Context, r storage.Root) error {
	return p.everything.Create(ctx, p.of(r))
}

func (p inPool) Mount(ctx context.Context, r storage.Root) (string, error) {
	return p.everything.Mount(ctx, p.of(r))
}

func (p inPool) Copy(ctx context.Context, from string, to storage.Root) error {
	return p.everything.Copy(ctx, from, p.of(to))
}

// TestConformance: a root disk in a pool is as good as one of the back end alone, beside the default pool and another one.
func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Subject{Open: func(path string) (storage.Backend, error) {
		main, err := dir.New(path+"-main", pool.FileOptions{})
		if err != nil {
			return nil, err
		}
		fast, err := overlay.New(context.Background(), path, pool.FileOptions{})
		if err != nil {
			return nil, err
		}
		nested, err := dir.New(path+"-nested", pool.FileOptions{})
		if err != nil {
			return nil, err
		}
		slow, err := dir.New(path+"-slow", pool.FileOptions{})
		if err != nil {
			return nil, err
		}
		pools := storage.Pools(storage.Pool{Normal: main, Nested: main}, map[string]storage.Pool{
			"fast": {Normal: fast, Nested: nested}, "slow": {Normal: slow, Nested: slow},
		})
		all, ok := pools.(everything)
		if !ok {
			panic("a back end of pools lacks an optional interface")
		}
		return inPool{all, "fast"}, nil
	}})
}

// TestPoolsAreApart: root disks of several pools, and what is done to one of them.
func TestPoolsAreApart(t *testing.T) {
	e := storagetest.NewEnvironment(t)
	open := func() storage.Pooled {
		main, err := overlay.New(t.Context(), filepath.Join(e.Dir, "main"), pool.FileOptions{})
		require.NoError(t, err)
		slow, err := dir.New(filepath.Join(e.Dir, "slow"), pool.FileOptions{})
		require.NoError(t, err)
		return storage.Pools(storage.Pool{Normal: main, Nested: main}, map[string]storage.Pool{"slow": {Normal: slow, Nested: slow}})
	}
	b := open()
	roots := map[string]storage.Root{}
	for i, c := range []struct{ id, pool string }{{"a", ""}, {"b", "slow"}} {
		r := storage.Root{InstanceID: c.id, ImagePath: e.Image, SizeGB: 1, IDs: storage.IDRange{Base: uint32(i+1) << 20, Size: 1 << 16}, Pool: c.pool}
		require.NoError(t, b.Create(t.Context(), r))
		roots[c.id] = r
	}
	b = open() // the agent is started anew
	for id, within := range map[string]string{"a": "main", "b": "slow"} {
		path, err := b.Mount(t.Context(), roots[id])
		require.NoError(t, err)
		require.Equal(t, filepath.Join(e.Dir, within, id, "rootfs"), path)
	}
	require.NoError(t, b.Delete(t.Context(), "b"))
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, list)
	require.DirExists(t, filepath.Join(e.Dir, "main", "a", "rootfs", "etc"), "mounted still")
	require.NoError(t, b.Delete(t.Context(), "a"))
	require.Empty(t, storagetest.Leftovers(t, e.Dir).Mounts)
}
