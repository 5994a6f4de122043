package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/release"
)

// TestInjectionOptions: an existing nova.conf means here what it means to nova-compute.
func TestInjectionOptions(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]inject.Settings{
		"": {}, "inject_key = True\ninject_password = True": {Key: true, Password: true}, "inject_partition = -2": {},
		"inject_partition = -1": {Enabled: true}, "inject_partition = 0\ninject_key = true": {Enabled: true, Key: true},
		"inject_partition = 1\ninject_password = yes": {Enabled: true, Password: true},
	} {
		file := filepath.Join(t.TempDir(), "agent.conf")
		require.NoError(t, os.WriteFile(file, []byte("[libvirt]\n"+text+"\n"), 0o600))
		c, _, err := config.Load(config.Sources{Files: []string{"../../config/testdata/nova.conf", file}, Dirs: []string{t.TempDir()}})
		require.NoError(t, err)
		require.Equal(t, want, managerOptions(c, release.Release{}, hostinfo.Info{}, nil).Injection, text)
	}
}

// TestImageOptions: what an operator writes about images reaches the store, in its units.
func TestImageOptions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	load := func(text string) imagesync.Options {
		file := filepath.Join(dir, "agent.conf")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		c, _, err := config.Load(config.Sources{Files: []string{"../../config/testdata/nova.conf", file}, Dirs: []string{dir}})
		require.NoError(t, err)
		return imageOptions(c)
	}
	want := imagesync.Options{
		Dir: "/var/lib/images", MaxImageBytes: 7 << 30, MaxUnpackedBytes: 7 << 30, MaxEntries: 12345, ReserveBytes: 99 << 20,
		Timeout: 77 * time.Second, StallTimeout: 11 * time.Second, Retries: 6, Parallel: 4,
	}
	got := load(`[lxc]
image_dir = /var/lib/images
max_image_entries = 12345
max_image_size_gb = 7
image_unpack_timeout = 77
image_reserve_mb = 99
image_stall_timeout = 11
image_download_concurrency = 4
[glance]
num_retries = 5
`)
	require.Empty(t, cmp.Diff(want, got))

	// The defaults are those of the configuration, not the store's own.
	got = load("[lxc]\n")
	require.Equal(t, 2_000_000, got.MaxEntries)
	require.EqualValues(t, 100<<30, got.MaxImageBytes)
	require.EqualValues(t, 100<<30, got.MaxUnpackedBytes)
	require.Equal(t, 30*time.Minute, got.Timeout)
}
