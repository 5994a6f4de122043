package unpack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
