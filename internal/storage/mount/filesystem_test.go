package mount

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

func TestCheckRoom(t *testing.T) {
	t.Parallel()
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	require.ErrorIs(t, CheckRoom(dir, 1<<60), storage.ErrNoSpace)
	gone, err := os.Open(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	require.ErrorContains(t, CheckRoom(gone, 0), "look at file system")
}

func TestSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, Sync(dir))
	require.ErrorIs(t, Sync(filepath.Join(dir, "none")), os.ErrNotExist)
}

func TestHasAlias(t *testing.T) {
	t.Parallel()
	aliases := []byte("# Aliases extracted from modules themselves.\nalias fs-overlay overlay\nalias fs-xfs xfs\n")
	require.True(t, hasAlias(aliases, "overlay"))
	require.True(t, hasAlias(aliases, "xfs"))
	require.False(t, hasAlias(aliases, "over"))
	require.False(t, hasAlias(aliases, "btrfs"))
	require.False(t, hasAlias(nil, "btrfs"))
}
