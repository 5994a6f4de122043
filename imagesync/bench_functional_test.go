//go:build functional

package imagesync

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	debianImage  = "/var/lib/lab/zed/var/lib/lab/images/debian-12-rootfs.tar.xz"
	busyboxImage = "/var/lib/lab/zed/var/lib/lab/images/busybox-rootfs.tar.gz"
)

// BenchmarkImport imports a Debian root file system; BenchmarkTar is what it is measured against.
func BenchmarkImport(b *testing.B) {
	info, err := os.Stat(debianImage)
	require.NoError(b, err)
	for b.Loop() {
		b.StopTimer()
		s, err := Open(Options{Dir: b.TempDir()})
		require.NoError(b, err)
		b.StartTimer()
		_, err = s.Sync(b.Context(), Request{ID: "debian", Size: info.Size(), Source: fileSource(debianImage)})
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkTar is `xz -dc -T0 | tar -x`.
func BenchmarkTar(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		b.StartTimer()
		cmd := exec.CommandContext(b.Context(), "/bin/sh", "-c", "xz -dc -T0 "+debianImage+" | tar -C "+dir+" -xp --xattrs --xattrs-include='*' --numeric-owner")
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, string(out))
	}
}
