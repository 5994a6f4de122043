package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// passable is a temporary directory through which others can pass.
func passable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func nothingMounted(string) error { return nil }

func openPool(t *testing.T, dir string) *Pool {
	t.Helper()
	p, err := Open(dir, nothingMounted)
	require.NoError(t, err)
	return p
}

func disk(id string) storage.Root {
	return storage.Root{InstanceID: id, ImagePath: "/image", SizeGB: 1, IDs: storage.IDRange{Base: 1 << 20, Size: 1 << 16}}
}

func writeFile(dir string) error {
	return os.WriteFile(filepath.Join(dir, "disk.img"), []byte("data"), 0o600)
}

func TestLife(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(passable(t), "roots")
	p := openPool(t, dir)
	_, err := p.Root("a")
	require.ErrorIs(t, err, storage.ErrNotFound)
	require.NoError(t, p.Add(disk("a"), writeFile))
	require.NoError(t, p.Add(disk("a"), func(string) error { return errors.New("it is there already") }))
	other := disk("a")
	other.SizeGB = 2
	require.ErrorContains(t, p.Add(other, writeFile), "other properties")
	for _, path := range []string{dir, p.Path("a")} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o711), info.Mode().Perm())
	}

	p = openPool(t, dir)
	got, err := p.Root("a")
	require.NoError(t, err)
	require.Equal(t, disk("a"), got)
	require.NoError(t, p.Discard("a"))
	require.NoError(t, p.Discard("a"))
	list, err := p.List()
	require.NoError(t, err)
	require.Empty(t, list)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	require.NoError(t, p.Add(disk("b"), writeFile))
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(p.path(trashDir))
		p.mu.Lock()
		defer p.mu.Unlock()
		return err == nil && len(left) == 0 && len(p.fresh) == 0
	}, 5*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	list, err = p.List()
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, list)
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Greater(t, usage.Total, usage.Free)
}

func TestFailedAddLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(passable(t), "roots")
	released := ""
	p, err := Open(dir, func(d string) error { released = d; return nil })
	require.NoError(t, err)
	err = p.Add(disk("a"), func(dir string) error { return errors.Join(writeFile(dir), unix.ENOSPC) })
	require.ErrorIs(t, err, storage.ErrNoSpace)
	require.Equal(t, p.path(newDir, "a"), released)
	_, err = p.Root("a")
	require.ErrorIs(t, err, storage.ErrNotFound)
	left, err := os.ReadDir(p.path(newDir))
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, p.Add(disk("a"), writeFile))
}

// TestCrash: what a crash left half made is released and taken away.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(passable(t), "roots")
	p := openPool(t, dir)
	require.NoError(t, os.Mkdir(p.path(newDir, "half"), 0o700))
	released := ""
	p, err := Open(dir, func(d string) error { released = d; return nil })
	require.NoError(t, err)
	require.Equal(t, p.path(newDir, "half"), released)
	require.NoDirExists(t, p.path(newDir, "half"))
	// A record that a power cut emptied: not found would be wrong, and it can be discarded.
	require.NoError(t, os.Mkdir(p.Path("cut"), 0o700))
	require.NoError(t, os.WriteFile(p.Path("cut", record), nil, 0o600))
	_, err = p.Root("cut")
	require.Error(t, err)
	require.NotErrorIs(t, err, storage.ErrNotFound)
	require.NoError(t, p.Discard("cut"))
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := passable(t)
	for _, bad := range []string{"relative", dir + "/a:b", dir + "/a,b", dir + `/a\b`} {
		_, err := Open(bad, nothingMounted)
		require.Error(t, err, bad)
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	_, err := Open(filepath.Join(dir, "private", "roots"), nothingMounted)
	require.ErrorContains(t, err, "private has mode 0700")
}

// Discard once lost its directory in the trash to Run, which took it for an old one, and a delete failed.
func TestDiscardBesideRun(t *testing.T) {
	t.Parallel()
	p := openPool(t, filepath.Join(passable(t), "roots"))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			require.NoError(t, p.empty(ctx))
		}
	})
	for i := range 8 {
		work.Go(func() {
			id := fmt.Sprint("instance-", i)
			for range 100 {
				require.NoError(t, p.Add(disk(id), writeFile))
				require.NoError(t, p.Discard(id))
				require.NoDirExists(t, p.Path(id))
				require.NoError(t, p.Discard(id))
			}
			if i == 0 {
				stop()
			}
		})
	}
	work.Wait()
}
