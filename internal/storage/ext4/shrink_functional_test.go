//go:build functional

package ext4

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// TestShrink makes a file system smaller that was grown, with what is in it, and refuses what does not fit.
func TestShrink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	disk := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, Create(t.Context(), disk, Format{SizeGB: 1}))
	require.NoError(t, Grow(t.Context(), disk, 3))
	fill := func(name string, size int) {
		t.Helper()
		fs, err := Open(disk)
		require.NoError(t, err)
		fd, err := unix.Openat(int(fs.Fd()), name, unix.O_CREAT|unix.O_WRONLY, 0o600)
		require.NoError(t, err)
		_, err = unix.Write(fd, make([]byte, size))
		require.NoError(t, err)
		require.NoError(t, unix.Fallocate(fd, 0, 0, int64(size)))
		require.NoError(t, unix.Close(fd))
		require.ErrorIs(t, Shrink(t.Context(), disk, 1), storage.ErrBusy)
		require.NoError(t, fs.Close())
	}
	fill("small", 1<<20)
	require.NoError(t, Shrink(t.Context(), disk, 1))
	st, err := os.Stat(disk)
	require.NoError(t, err)
	require.Equal(t, int64(1<<30), st.Size())
	require.NoError(t, Shrink(t.Context(), disk, 1), "again")

	require.NoError(t, Grow(t.Context(), disk, 2))
	for i, name := range []string{"a", "b", "c"} {
		fill(name, 400<<20+i)
	}
	require.ErrorIs(t, Shrink(t.Context(), disk, 1), storage.ErrTooSmall)
	size, err := sizeOf(disk)
	require.NoError(t, err)
	require.Equal(t, int64(2<<30), size, "it stays as it is")
}
