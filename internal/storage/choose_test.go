package storage_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// backend keeps sizes by instance.
type backend struct {
	name  string
	roots map[string]int
}

func (b *backend) Name() string { return b.name }
func (b *backend) Create(_ context.Context, r storage.Root) error {
	b.roots[r.InstanceID] = r.SizeGB
	return nil
}

func (b *backend) Mount(_ context.Context, r storage.Root) (string, error) {
	if _, ok := b.roots[r.InstanceID]; !ok {
		return "", storage.ErrNotFound
	}
	return "/" + b.name, nil
}
func (b *backend) Unmount(context.Context, string) error { return nil }
func (b *backend) Delete(_ context.Context, id string) error {
	delete(b.roots, id)
	return nil
}

func (b *backend) Grow(_ context.Context, id string, sizeGB int) error {
	if _, ok := b.roots[id]; !ok {
		return storage.ErrNotFound
	}
	b.roots[id] = sizeGB
	return nil
}

func (b *backend) Devices(_ context.Context, id string) ([]storage.Device, error) {
	if _, ok := b.roots[id]; !ok {
		return nil, storage.ErrNotFound
	}
	return []storage.Device{{Number: b.name}}, nil
}

func (b *backend) List(context.Context) ([]string, error) {
	var ids []string
	for id := range b.roots {
		ids = append(ids, id)
	}
	return ids, nil
}

func (b *backend) Usage(context.Context) (storage.Usage, error) { return storage.Usage{Total: 1}, nil }

func TestChoose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	normal, nested := &backend{"normal", map[string]int{}}, &backend{"nested", map[string]int{}}
	old := &backend{"old", map[string]int{"c": 1}}
	b := storage.Choose(normal, nested, old, nested)
	require.NoError(t, b.Create(ctx, storage.Root{InstanceID: "a", SizeGB: 1}))
	require.NoError(t, b.Create(ctx, storage.Root{InstanceID: "b", SizeGB: 1, Nested: true}))
	for id, want := range map[string]string{"a": "normal", "b": "nested", "c": "old"} {
		path, err := b.Mount(ctx, storage.Root{InstanceID: id, Nested: id == "b"})
		require.NoError(t, err)
		require.Equal(t, "/"+want, path)
		require.NoError(t, b.Grow(ctx, id, 2))
		devices, err := b.(storage.Devicer).Devices(ctx, id)
		require.NoError(t, err)
		require.Equal(t, []storage.Device{{Number: want}}, devices)
	}
	require.Equal(t, 2, old.roots["c"])
	_, err := b.Mount(ctx, storage.Root{InstanceID: "d"})
	require.ErrorIs(t, err, storage.ErrNotFound)
	require.ErrorIs(t, b.Grow(ctx, "d", 1), storage.ErrNotFound)
	list, err := b.List(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, list)
	for _, id := range list {
		require.NoError(t, b.Delete(ctx, id))
	}
	list, err = b.List(ctx)
	require.NoError(t, err)
	require.Empty(t, list)
	require.Equal(t, "normal", b.Name())
}

// layered is a back end that keeps layers.
type layered struct{ *backend }

func (layered) KeepsLayers(storage.Root) bool { return true }

func (layered) Layer(context.Context, string) (string, func() error, error) {
	return "", nil, storage.ErrNotFound
}

// TestKeepsLayers: by the back end that a new root disk would get.
func TestKeepsLayers(t *testing.T) {
	t.Parallel()
	plain := &backend{"plain", map[string]int{}}
	with := layered{&backend{"with", map[string]int{}}}
	for _, c := range []struct {
		b              storage.Backend
		normal, nested bool
	}{
		{storage.Choose(with, plain, plain), true, false},
		{storage.Choose(plain, with, with), false, true},
		{storage.Choose(plain, plain, with), false, false},
	} {
		l, ok := c.b.(storage.Layered)
		require.True(t, ok)
		require.Equal(t, c.normal, l.KeepsLayers(storage.Root{}))
		require.Equal(t, c.nested, l.KeepsLayers(storage.Root{Nested: true}))
	}
}

func TestCheckID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a", "06bb20e2-0001-4000-8000-000000000001", "06bb20e2-0001-4000-8000-000000000001.rescue"} {
		require.NoError(t, storage.CheckID(id), id)
	}
	for _, id := range []string{"", ".new", "..", "a/b", "a.", "a.B", "a.b.c", "-a"} {
		require.Error(t, storage.CheckID(id), id)
	}
}
