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

const record = "root.json"

func open(dir string) (*Pool[storage.Root], error) {
	return Open[storage.Root](dir, Options{Record: record})
}

func openPool(t *testing.T, dir string) *Pool[storage.Root] {
	t.Helper()
	p, err := open(dir)
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
	_, err := p.Get("a")
	require.ErrorIs(t, err, storage.ErrNotFound)
	require.NoError(t, p.Add("a", disk("a"), writeFile))
	require.NoError(t, p.Add("a", disk("a"), func(string) error { return errors.New("it is there already") }))
	other := disk("a")
	other.SizeGB = 2
	require.ErrorContains(t, p.Add("a", other, writeFile), "other properties")
	for _, path := range []string{dir, p.Path("a")} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o711), info.Mode().Perm())
	}

	p = openPool(t, dir)
	got, err := p.Get("a")
	require.NoError(t, err)
	require.Equal(t, disk("a"), got)
	require.NoError(t, p.Delete(t.Context(), "a"))
	require.NoError(t, p.Delete(t.Context(), "a"))
	list, err := p.List()
	require.NoError(t, err)
	require.Empty(t, list)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	require.NoError(t, p.Add("b", disk("b"), writeFile))
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(p.path(trashDir))
		p.mu.Lock()
		defer p.mu.Unlock()
		return err == nil && len(left) == 0 && len(p.fresh) == 0
	}, time.Minute, time.Millisecond) // it waits for the disk
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
	p := openPool(t, dir)
	err := p.Add("a", disk("a"), func(dir string) error { return errors.Join(writeFile(dir), unix.ENOSPC) })
	require.ErrorIs(t, err, storage.ErrNoSpace)
	_, err = p.Get("a")
	require.ErrorIs(t, err, storage.ErrNotFound)
	left, err := os.ReadDir(p.path(newDir))
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, p.Add("a", disk("a"), writeFile))
}

// TestCrash: what a crash left half made is released and taken away.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(passable(t), "roots")
	p := openPool(t, dir)
	require.NoError(t, os.Mkdir(p.path(newDir, "half"), 0o700))
	p = openPool(t, dir)
	require.NoDirExists(t, p.path(newDir, "half"))
	// A record that a power cut emptied: not found would be wrong, and it can be discarded.
	require.NoError(t, os.Mkdir(p.Path("cut"), 0o700))
	require.NoError(t, os.WriteFile(p.Path("cut", record), nil, 0o600))
	_, err := p.Get("cut")
	require.Error(t, err)
	require.NotErrorIs(t, err, storage.ErrNotFound)
	require.NoError(t, p.Delete(t.Context(), "cut"))
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := passable(t)
	for _, bad := range []string{"relative", dir + "/a:b", dir + "/a,b", dir + `/a\b`} {
		_, err := open(bad)
		require.Error(t, err, bad)
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	_, err := open(filepath.Join(dir, "private", "roots"))
	require.ErrorContains(t, err, "private has mode 0700")
}

// TestReplace: a disk takes another's place, and its record says whose it is now.
func TestReplace(t *testing.T) {
	t.Parallel()
	p := openPool(t, filepath.Join(passable(t), "roots"))
	require.NoError(t, p.Add("a", disk("a"), writeFile))
	next := disk("a.next")
	next.SizeGB = 2
	require.NoError(t, p.Add("a.next", next, writeFile))
	rename := func(r storage.Root) storage.Root { r.InstanceID = "a"; return r }
	require.NoError(t, p.Replace(t.Context(), "a", "a.next", rename))
	got, err := p.Get("a")
	require.NoError(t, err)
	next.InstanceID = "a"
	require.Equal(t, next, got)
	list, err := p.List()
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, list)
	require.ErrorIs(t, p.Replace(t.Context(), "a", "a.next", rename), storage.ErrNotFound)
}

// Delete once lost its directory in the trash to Run, which took it for an old one, and failed.
func TestDeleteBesideRun(t *testing.T) {
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
				require.NoError(t, p.Add(id, disk(id), writeFile))
				require.NoError(t, p.Delete(t.Context(), id))
				require.NoDirExists(t, p.Path(id))
				require.NoError(t, p.Delete(t.Context(), id))
			}
			if i == 0 {
				stop()
			}
		})
	}
	work.Wait()
}
