//go:build functional

package hostshare

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

var ids = storage.IDRange{Base: 3_000_000, Size: 65536}

// openStore makes a store with shares on a disk: not every kernel maps the ids of a tmpfs.
func openStore(t *testing.T) (s *Store, base string) {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	base, err := os.MkdirTemp("/var/tmp", "hostshare-") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(base)) })
	for _, d := range []string{"data", "tools", "real/below"} {
		require.NoError(t, os.MkdirAll(filepath.Join(base, d), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(base, "tools/file"), []byte("tool"), 0o600))
	require.NoError(t, os.Chown(filepath.Join(base, "tools/file"), 1000, 1000))
	require.NoError(t, os.WriteFile(filepath.Join(base, "file"), nil, 0o600))
	require.NoError(t, os.Symlink("real", filepath.Join(base, "link")))
	shares := []Share{{Name: "tools", Path: filepath.Join(base, "tools"), ReadOnly: true}, {Name: "proc", Path: "/proc"}, {Name: "below", Path: filepath.Join(base, "link/below")}}
	for _, name := range []string{"data", "gone", "file", "link"} {
		shares = append(shares, Share{Name: name, Path: filepath.Join(base, name)})
	}
	s, err = Open(filepath.Join(base, "mounts"), shares)
	require.NoError(t, err)
	return s, base
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Uid
}

// TestMount: the guest's user n is the share's user n, in two guests with other ids; what is read-only stays so.
func TestMount(t *testing.T) {
	s, base := openStore(t)
	other := storage.IDRange{Base: 4_000_000, Size: 65536}
	for range 2 { // again is fine
		require.NoError(t, s.Mount("a", ids, []string{"data", "tools"}))
	}
	require.NoError(t, s.Mount("b", other, []string{"data"}))
	require.NoError(t, os.WriteFile(filepath.Join(base, "data/file"), []byte("x"), 0o600))
	require.NoError(t, os.Chown(filepath.Join(base, "data/file"), 7, 7))
	require.Equal(t, ids.Base+7, owner(t, filepath.Join(s.Path("a", "data"), "file")))
	require.Equal(t, other.Base+7, owner(t, filepath.Join(s.Path("b", "data"), "file")))
	require.Equal(t, ids.Base+1000, owner(t, filepath.Join(s.Path("a", "tools"), "file")))
	require.NoError(t, os.Chown(filepath.Join(s.Path("a", "data"), "file"), int(ids.Base), int(ids.Base)))
	require.Zero(t, owner(t, filepath.Join(base, "data/file")), "the guest's root is the share's")
	require.ErrorIs(t, os.WriteFile(filepath.Join(s.Path("a", "tools"), "new"), nil, 0o600), unix.EROFS)
	for point, readOnly := range map[string]bool{s.Path("a", "data"): false, s.Path("a", "tools"): true} {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(point, &st))
		want := int64(unix.ST_NOSUID | unix.ST_NODEV)
		if readOnly {
			want |= unix.ST_RDONLY
		}
		require.Equal(t, want, st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_RDONLY), point)
	}

	// The next agent has other mounts to take away than those that it knows of.
	next, err := Open(filepath.Join(base, "mounts"), nil)
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, next.Unmount("a"))
	}
	mounted, err := mount.Is(s.Path("a", "data"))
	require.NoError(t, err)
	require.False(t, mounted)
	require.NoError(t, s.Mount("a", ids, []string{"data"}), "the next start")
	for _, id := range []string{"a", "a", "b", "never"} {
		require.NoError(t, next.Remove(id))
		require.NoDirExists(t, filepath.Join(base, "mounts", id))
	}
	require.FileExists(t, filepath.Join(base, "data/file"), "what is shared stays")
	require.Error(t, s.Remove("../data"))
	require.Error(t, s.Mount("../data", ids, []string{"data"}))
}

// TestUnavailable: what is not there, or not what the operator means, is refused before anything is mounted.
func TestUnavailable(t *testing.T) {
	s, base := openStore(t)
	for name, want := range map[string]string{
		"none": "has none named none", "gone": "no such file", "file": "not a directory", "link": "", "below": "symbolic link",
	} {
		for _, err := range []error{s.Check([]string{"data", name}), s.Mount("a", ids, []string{name})} {
			require.ErrorIs(t, err, ErrUnavailable, name)
			require.ErrorContains(t, err, want)
		}
	}
	require.NoError(t, s.Check([]string{"data", "tools"}))
	require.ErrorIs(t, s.Mount("a", ids, []string{"proc"}), ErrUnavailable, "its ids cannot be mapped")
	require.NoError(t, s.Remove("a"))
	require.NoDirExists(t, filepath.Join(base, "mounts/a"))
}

// TestBusy: a mount that somebody is in goes all the same.
func TestBusy(t *testing.T) {
	s, base := openStore(t)
	require.NoError(t, s.Mount("a", ids, []string{"data"}))
	dir, err := os.Open(s.Path("a", "data"))
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, s.Remove("a"))
	require.NoDirExists(t, filepath.Join(base, "mounts/a"))
}
