package fdio

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestHoles(t *testing.T) {
	t.Parallel()
	const size, page = 8 << 20, 64 << 10
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	require.NoError(t, err)
	defer f.Close()
	fd := int(f.Fd())
	require.NoError(t, f.Truncate(size))
	data := make([]byte, page)
	for i := range data {
		data[i] = byte(i)
	}
	for _, at := range []int64{0, 2 << 20, size - page} {
		require.NoError(t, WriteAt(fd, data, at))
	}
	extents := func(size int64) (list []Extent) {
		for e, err := range Extents(fd, size) {
			require.NoError(t, err)
			list = append(list, e)
		}
		return list
	}
	want := []Extent{{0, page}, {2 << 20, 2<<20 + page}, {size - page, size}}
	if got := extents(size); !slices.Equal(got, []Extent{{0, size}}) { // a file system without holes
		require.Equal(t, want, got)
		require.Equal(t, want[:2], extents(size-page), "what is behind the size does not count")
		require.Equal(t, []Extent{{0, page}, {2 << 20, 2<<20 + 1}}, extents(2<<20+1))
	}
	got := make([]byte, 2*page)
	n, err := ReadAt(fd, got, size-page)
	require.NoError(t, err)
	require.Equal(t, data, got[:n])

	require.NoError(t, f.Close())
	for _, err := range Extents(fd, size) {
		require.ErrorIs(t, err, unix.EBADF)
	}
}

func TestReadNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "below"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.NoError(t, os.Symlink("below", filepath.Join(dir, "link")))
	fd, err := OpenDir(unix.AT_FDCWD, dir)
	require.NoError(t, err)
	defer unix.Close(fd)
	for range 2 {
		names, err := ReadNames(fd)
		require.NoError(t, err)
		require.ElementsMatch(t, []string{"below", "file", "link"}, names)
	}
	_, err = OpenDir(fd, "link")
	require.ErrorIs(t, err, unix.ENOTDIR)
}
