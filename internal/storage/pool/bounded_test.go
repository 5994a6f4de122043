package pool

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/prjquota"
)

// withoutProjects is a passable directory whose file system has no project quotas.
func withoutProjects(t *testing.T) string {
	t.Helper()
	dir := passable(t)
	if prjquota.Check(dir) == nil {
		t.Skip("the directory for temporary files is on a file system with project quotas")
	}
	return dir
}

// TestProjectQuotaRefused: without project quotas the back end does not open, with the reason and what to do; nothing is left.
func TestProjectQuotaRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(withoutProjects(t), "roots")
	_, err := OpenFileRoots(dir, FileOptions{ProjectQuota: true})
	require.ErrorIs(t, err, storage.ErrUnsupported)
	require.ErrorContains(t, err, "the file system of "+dir+" is not mounted with prjquota")
	require.ErrorContains(t, err, "mount it with prjquota, or set [lxc] root_disk_quota = file")
	left, err := os.ReadDir(filepath.Join(dir, newDir))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestKinds: what is on disk says what a root disk is, and one with a quota is not used without it.
func TestKinds(t *testing.T) {
	t.Parallel()
	b, err := OpenFileRoots(filepath.Join(withoutProjects(t), "roots"), FileOptions{})
	require.NoError(t, err)
	ids := storage.IDRange{Base: 1 << 20, Size: 1 << 16}
	for id, fill := range map[string]func(dir string) error{
		"file":    func(dir string) error { return os.WriteFile(filepath.Join(dir, DiskFile), nil, 0o600) },
		"bounded": func(dir string) error { return os.Mkdir(filepath.Join(dir, boundedDir), 0o700) },
	} {
		require.NoError(t, b.CreateBy(storage.Root{InstanceID: id, ImagePath: "/image", SizeGB: 1, IDs: ids}, fill))
		require.Equal(t, id == "bounded", isBounded(b.Pool.Path(id)))
	}
	dir := b.Pool.Path("bounded")
	require.Error(t, b.MountDisk(t.Context(), dir, filepath.Join(dir, RootfsDir), 1))
	require.Error(t, b.Shrink(t.Context(), "bounded", 1))
	require.Error(t, b.Settle(dir))
	require.NoError(t, b.Settle(b.Pool.Path("file")))
	require.NoError(t, b.Flush(t.Context(), "bounded"))
	path, done, err := b.OpenDisk("bounded")
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, boundedDir), path)
	require.NoError(t, done())
	require.Error(t, b.Grow(t.Context(), "bounded", 2))
	require.Error(t, b.Copy(t.Context(), "bounded", storage.Root{InstanceID: "copy"}))
	require.NoError(t, b.Delete(t.Context(), "bounded"))
	require.NoError(t, b.Pool.empty(t.Context()))
	left, err := os.ReadDir(b.Pool.path(trashDir))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestLimit(t *testing.T) {
	t.Parallel()
	for inodesPerGB, want := range map[int]prjquota.Limit{0: {Bytes: 3 << 30, Inodes: 3 * 65536}, 2000: {Bytes: 3 << 30, Inodes: 6000}} {
		b := &FileRoots{o: FileOptions{InodesPerGB: inodesPerGB}}
		require.Equal(t, want, b.limit(3))
	}
}
