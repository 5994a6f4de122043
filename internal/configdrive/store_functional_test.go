//go:build functional

package configdrive

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

const owner = 1_000_000

func TestFunctionalStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := filepath.Join(t.TempDir(), "drives")
	s, err := Open(dir)
	require.NoError(t, err)
	ctx := t.Context()
	require.NoError(t, s.Mount("nobody"), "a server without a drive")
	require.NoError(t, s.Unmount(ctx, "nobody"))
	require.NoError(t, s.Remove(ctx, "nobody"))
	require.Error(t, s.Remove(ctx, ""))
	require.Error(t, s.Remove(ctx, "../x"))

	for _, text := range []string{"one", "two"} { // again: the new one counts
		require.NoError(t, s.Write(ctx, "u-1", owner, []Document{{"openstack/latest/meta_data.json", []byte(text)}, {"openstack/content/0000", []byte("file")}}))
		require.True(t, s.Exists("u-1"))
		for range 2 {
			require.NoError(t, s.Mount("u-1"))
		}
		got, err := os.ReadFile(filepath.Join(s.Path("u-1"), "openstack/latest/meta_data.json"))
		require.NoError(t, err)
		require.Equal(t, text, string(got))
	}
	err = filepath.WalkDir(filepath.Join(dir, "u-1", treeDir), func(name string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o277, "%s: %s", name, info.Mode())
		st := info.Sys().(*syscall.Stat_t)
		require.Equal(t, [2]uint32{owner, owner}, [2]uint32{st.Uid, st.Gid}, name)
		return nil
	})
	require.NoError(t, err)
	require.ErrorIs(t, os.WriteFile(filepath.Join(s.Path("u-1"), "new"), nil, 0o600), syscall.EROFS)
	require.NoError(t, s.Unmount(ctx, "u-1"))
	require.NoError(t, s.Mount("u-1"), "the next start")
	require.NoError(t, s.Remove(ctx, "u-1"))
	require.NoDirExists(t, filepath.Join(dir, "u-1"))

	require.Error(t, s.Write(ctx, "u-2", owner, []Document{{"../../x", nil}}), "a document outside")
	require.NoDirExists(t, filepath.Join(dir, "u-2"))
	require.NoFileExists(t, filepath.Join(dir, "x"))
	require.False(t, s.Exists("u-2"))
}
