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
)

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
