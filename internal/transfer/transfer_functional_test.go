//go:build functional

package transfer

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/idattr"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// TestOtherRange sends a layer, owned by a range of ids, to one with another: owners, access lists and file
// capabilities move along, whiteouts and opaque directories stay, and what belongs to the kernel's overlay alone does not.
func TestOtherRange(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	from, to := t.TempDir(), t.TempDir()
	tree(t, from)
	source, target := storage.IDRange{Base: 1_000_000, Size: 65536}, storage.IDRange{Base: 5_000_000, Size: 65536}
	require.NoError(t, filepath.WalkDir(from, func(p string, _ os.DirEntry, err error) error {
		require.NoError(t, err)
		return os.Lchown(p, int(source.Base), int(source.Base)+5)
	}))
	program := filepath.Join(from, "etc/shadow")
	require.NoError(t, os.Chown(program, int(source.Base)+1000, int(source.Base)+65535))
	require.NoError(t, unix.Setxattr(program, idattr.Capability, append([]byte{1, 0, 0, 3}, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x42, 0x0f, 0), 0))
	require.NoError(t, unix.Chmod(program, 0o4711))
	require.NoError(t, unix.Mknod(filepath.Join(from, "var/gone"), unix.S_IFCHR, 0))
	require.NoError(t, unix.Mknod(filepath.Join(from, "var/device"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))))
	for name, value := range map[string]string{"trusted.overlay.opaque": "y", "trusted.overlay.origin": "x", "trusted.overlay.redirect": "/old"} {
		require.NoError(t, unix.Setxattr(filepath.Join(from, "empty"), name, []byte(value), 0))
	}
	require.NoError(t, os.WriteFile(filepath.Join(from, "hosts"), nil, 0o600), "a file of the host's root")

	server := NewServer(Options{Address: "127.0.0.1"})
	offer, err := server.Offer(t.Context(), "m", Source{IDs: source, Trees: []Tree{{treeAt(from).Open, true}}})
	require.NoError(t, err)
	defer offer.Close()
	fetch, err := NewFetch(offer.Ticket, Target{IDs: target, Dirs: []TargetDir{{to, true}}})
	require.NoError(t, err)
	defer fetch.Close(nil)
	require.NoError(t, fetch.Running(t.Context()))
	var finish sync.WaitGroup
	finish.Go(func() {
		if err := offer.Finish(t.Context()); err != nil {
			t.Error(err)
		}
	})
	require.NoError(t, fetch.Last(t.Context()))
	finish.Wait()

	for name, want := range map[string][2]uint32{"etc/shadow": {5_001_000, 5_065_535}, ".": {5_000_000, 5_000_005}, "absolute": {5_000_000, 5_000_005}, "hosts": {5_065_534, 5_065_534}} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(to, name), &st))
		require.Equal(t, want, [2]uint32{st.Uid, st.Gid}, name)
	}
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(to, "etc/shadow"), &st))
	require.Equal(t, uint32(0o4711), st.Mode&0o7777)
	value := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(to, "etc/shadow"), idattr.Capability, value)
	require.NoError(t, err)
	require.Equal(t, []byte{0x40, 0x4b, 0x4c, 0}, value[n-4:n], "5000000")
	require.NoError(t, unix.Lstat(filepath.Join(to, "var/gone"), &st))
	require.Equal(t, uint32(unix.S_IFCHR), st.Mode&unix.S_IFMT)
	require.Zero(t, st.Rdev)
	require.ErrorIs(t, unix.Lstat(filepath.Join(to, "var/device"), &st), unix.ENOENT)
	for name, kept := range map[string]bool{"trusted.overlay.opaque": true, "trusted.overlay.origin": false, "trusted.overlay.redirect": true} {
		_, err := unix.Getxattr(filepath.Join(to, "empty"), name, value)
		require.Equal(t, kept, err == nil, name)
	}
}

// TestFullDisk: a destination without room says so, and the source hears of it.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p := newPair(t, Options{})
	small := t.TempDir()
	require.NoError(t, unix.Mount("none", small, "tmpfs", 0, "size=256k"))
	defer func() { require.NoError(t, unix.Unmount(small, unix.MNT_DETACH)) }()
	fetch, err := NewFetch(p.offer.Ticket, p.target(small))
	require.NoError(t, err)
	err = fetch.Running(t.Context())
	fetch.Close(err)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorIs(t, p.offer.Finish(t.Context()), ErrAborted)
}
