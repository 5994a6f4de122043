package lxc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProfileName(t *testing.T) {
	t.Parallel()
	require.Equal(t, "lxc-instance-00000001_</var/lib/nova/lxc>", profileName("instance-00000001", "/var/lib/nova/lxc"))
	require.Equal(t, "lxc-instance-00000001_<-var-lib-nova-lxc>", profileFile("instance-00000001", "/var/lib/nova/lxc"))
	require.Len(t, profileName("a", "/"+strings.Repeat("p", longProfile-9)), longProfile)
	require.Regexp(t, "^[0-9a-f]{16}$", profileName("a", "/"+strings.Repeat("p", longProfile-8)))
}

func TestRemoveCompiled(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	require.NoError(t, removeCompiled(filepath.Join(cache, "none"), "a"))
	require.NoError(t, os.WriteFile(filepath.Join(cache, "CACHEDIR.TAG"), nil, 0o600))
	for _, file := range []string{"1234.0/a", "5678.0/a", "5678.0/b"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(cache, file)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(cache, file), nil, 0o600))
	}
	require.NoError(t, removeCompiled(cache, "a"))
	require.NoFileExists(t, filepath.Join(cache, "1234.0/a"))
	require.NoFileExists(t, filepath.Join(cache, "5678.0/a"))
	require.FileExists(t, filepath.Join(cache, "5678.0/b"))
	require.NoError(t, removeCompiled(cache, "a"))
}
