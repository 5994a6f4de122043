package unpack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	tree := func(t *testing.T) string {
		t.Helper()
		dir := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "a/file"), []byte("1234"), 0o600))
		require.NoError(t, os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "a/b/hard")))
		require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
		return dir
	}
	limits := Limits{Entries: 5, Bytes: 4, MaxID: 65535}
	stats, err := Check(t.Context(), tree(t), limits)
	require.NoError(t, err)
	require.Equal(t, Stats{Entries: 5, Bytes: 4}, stats, "the bytes of a hard link count once")

	for name, tc := range map[string]struct {
		spoil  func(dir string) error
		limits Limits
		reason string
	}{
		"entries": {nil, Limits{Entries: 4, Bytes: 4, MaxID: 65535}, "limit of 4"},
		"bytes":   {nil, Limits{Entries: 5, Bytes: 3, MaxID: 65535}, "larger than 3"},
		"overlay": {
			func(dir string) error {
				return unix.Setxattr(filepath.Join(dir, "a"), "user.overlay.opaque", []byte("y"), 0)
			},
			limits, "overlayfs attribute",
		},
		"deep": {
			func(dir string) error {
				return os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", maxDepth+2)), 0o700)
			},
			Limits{Entries: 1000, Bytes: 4, MaxID: 65535},
			"deep",
		},
	} {
		dir := tree(t)
		if tc.spoil != nil {
			require.NoError(t, tc.spoil(dir), name)
		}
		_, err := Check(t.Context(), dir, tc.limits)
		var bad *Error
		require.ErrorAs(t, err, &bad, name)
		require.ErrorContains(t, err, tc.reason)
	}
	_, err = Check(t.Context(), filepath.Join(t.TempDir(), "none"), limits)
	require.ErrorIs(t, err, unix.ENOENT)
}

// TestCheckLargeDirectory: a directory is read in parts, and what is taken away while it is read hides nothing.
func TestCheckLargeDirectory(t *testing.T) {
	t.Parallel()
	functest.Need(t, os.Geteuid() == 0, "root")
	dir := t.TempDir()
	const files, devices = 5*namesAtATime + 7, 3*namesAtATime + 1
	for i := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), []byte("x"), 0o600))
	}
	for i := range devices {
		require.NoError(t, unix.Mknod(filepath.Join(dir, "device"+strconv.Itoa(i)), unix.S_IFCHR, int(unix.Mkdev(1, 3))))
	}
	limits := Limits{Entries: files, Bytes: files, MaxID: 65535}
	stats, err := Check(t.Context(), dir, limits)
	require.NoError(t, err)
	require.Equal(t, Stats{Entries: files, Bytes: files, Devices: devices}, stats)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, files)
	limits.Entries--
	_, err = Check(t.Context(), dir, limits)
	require.ErrorContains(t, err, "is one more than the limit")
}
