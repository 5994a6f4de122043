package storagetest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// copy: a copy has the content of the moment, whatever is mounted, and a life of its own.
func (suite) copy(t *testing.T, e Environment, b storage.Backend) {
	c, ok := b.(storage.Copier)
	if !ok {
		t.Skip("this back end copies no root disks")
	}
	from, to := root(e, "a", 0, 1), root(e, "a.snapshot", 0, 1)
	read := func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	one := up(t, b, from)
	require.NoError(t, os.WriteFile(filepath.Join(one, "etc/hostname"), []byte("changed\n"), 0o600))
	require.NoError(t, os.Chown(filepath.Join(one, "etc/hostname"), int(from.IDs.Base)+7, int(from.IDs.Base)+7))
	require.NoError(t, c.Flush(t.Context(), "a"))
	require.ErrorIs(t, c.Flush(t.Context(), "unknown"), storage.ErrNotFound)
	require.NoError(t, c.Copy(t.Context(), "a", to))
	two, err := b.Mount(t.Context(), to)
	require.NoError(t, err)
	require.Equal(t, "changed\n", read(filepath.Join(two, "etc/hostname")))
	require.Equal(t, from.IDs.Base+7, stat(t, filepath.Join(two, "etc/hostname")).Uid)
	require.NoError(t, os.WriteFile(filepath.Join(one, "etc/hostname"), []byte("later\n"), 0o600))
	require.NoError(t, os.Remove(filepath.Join(two, "etc/hostname")))
	require.Equal(t, "later\n", read(filepath.Join(one, "etc/hostname")))
	require.NoError(t, b.Delete(t.Context(), to.InstanceID))

	// Off, it is the same.
	require.NoError(t, b.Unmount(t.Context(), "a"))
	require.NoError(t, c.Copy(t.Context(), "a", to))
	two, err = b.Mount(t.Context(), to)
	require.NoError(t, err)
	require.Equal(t, "later\n", read(filepath.Join(two, "etc/hostname")))
	require.NoError(t, b.Delete(t.Context(), to.InstanceID))

	require.ErrorIs(t, c.Copy(t.Context(), "unknown", to), storage.ErrNotFound)
	require.NoError(t, b.Create(t.Context(), root(e, "plain", 1, 0)))
	require.ErrorIs(t, c.Copy(t.Context(), "plain", root(e, "plain.snapshot", 1, 0)), storage.ErrUnsupported)
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a", "plain"}, list)
	require.NoError(t, b.Delete(t.Context(), "plain"))
	require.NoError(t, b.Delete(t.Context(), "a"))
}
