package imagesync

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	require.NoError(t, s.Close())
	again, err := Open(s.o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = again.Close() })
	return again
}

func TestReferences(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 10)
	_, err := s.Sync(t.Context(), request("one", data))
	require.NoError(t, err)
	two, err := s.Sync(t.Context(), request("two", data))
	require.NoError(t, err)

	require.ErrorIs(t, s.Acquire("three", "instance"), ErrNotFound)
	require.NoError(t, s.Acquire("one", "instance"))
	require.NoError(t, s.Acquire("one", "instance"))
	require.NoError(t, s.Acquire("one", "other"))
	require.NoError(t, s.Release("one", "other"))
	require.NoError(t, s.Release("one", "other"))
	require.NoError(t, s.Release("three", "other"))
	s = reopen(t, s)
	one, ok, err := s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []string{"instance"}, one.Instances)
	require.Equal(t, two.Path, one.Path)
	require.ErrorIs(t, s.Remove(t.Context(), "one"), ErrInUse)
	require.NoError(t, s.Remove(t.Context(), "two"))
	require.DirExists(t, one.Path, "the other id needs it")
	require.NoError(t, s.Release("one", "instance"))
	require.NoError(t, s.Remove(t.Context(), "one"))
	require.NoError(t, s.Remove(t.Context(), "one"))
	requireClean(t, s)
	_, ok, err = s.Get(t.Context(), "one")
	require.NoError(t, err)
	require.False(t, ok)
}

func TestPrune(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, id := range []string{"old", "used", "new"} {
		_, err := s.Sync(t.Context(), request(id, plainTar(t, len(id))))
		require.NoError(t, err)
	}
	require.NoError(t, s.Acquire("used", "instance"))
	long := time.Now().Add(-48 * time.Hour)
	for _, id := range []string{"old", "used"} {
		require.NoError(t, os.Chtimes(s.path("aliases", id+".json"), long, long))
	}
	s = reopen(t, s)
	day := Policy{Unused: 24 * time.Hour}
	dry, err := s.Prune(t.Context(), Policy{Unused: day.Unused, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, []string{"old"}, prunedIDs(dry))
	require.Len(t, readDir(t, s.path("aliases")), 3, "a dry run removes nothing")
	removed, err := s.Prune(t.Context(), day)
	require.NoError(t, err)
	require.Equal(t, []string{"old"}, prunedIDs(removed))
	images, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, images, 2)
	require.Len(t, readDir(t, s.path("images")), 2)
	s.work.Wait()
	require.Empty(t, readDir(t, s.path("staging")))
	// Asked for again, an image is young again.
	require.NoError(t, os.Chtimes(s.path("aliases", "new.json"), long, long))
	s = reopen(t, s)
	_, err = s.Sync(t.Context(), request("new", plainTar(t, 3)))
	require.NoError(t, err)
	removed, err = s.Prune(t.Context(), day)
	require.NoError(t, err)
	require.Empty(t, removed)
}

func prunedIDs(pruned []Pruned) []string {
	ids := []string{}
	for _, p := range pruned {
		ids = append(ids, p.ID)
	}
	return ids
}

// TestPruneCap: the least recently used go first, and none that is in use, held or to be kept.
func TestPruneCap(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	ids := []string{"used", "held", "kept", "old", "twin", "middle", "new"}
	for i, id := range ids {
		size := 1<<20 + i
		if id == "twin" {
			size = 1<<20 + 3 // the content of "old"
		}
		r := request(id, plainTar(t, size))
		r.Keep = id == "kept"
		_, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
	}
	require.NoError(t, s.Acquire("used", "instance"))
	for i, id := range ids {
		stamp := time.Now().Add(time.Duration(i-10) * time.Hour)
		require.NoError(t, os.Chtimes(s.path("aliases", id+".json"), stamp, stamp))
	}
	s = reopen(t, s)
	usage, err := s.Usage()
	require.NoError(t, err)
	require.Equal(t, 7, usage.Images)
	require.Equal(t, 6, usage.Contents)
	one := usage.Bytes / 6
	defer s.Hold("held")()

	removed, err := s.Prune(t.Context(), Policy{Unused: -1, MaxBytes: usage.Bytes - one/2})
	require.NoError(t, err)
	require.Equal(t, []string{"old", "twin"}, prunedIDs(removed), "both ids of a content must go to free it")
	require.Zero(t, removed[0].Bytes)
	require.Positive(t, removed[1].Bytes)
	removed, err = s.Prune(t.Context(), Policy{Unused: -1, MaxBytes: 1})
	require.NoError(t, err)
	require.Equal(t, []string{"middle", "new"}, prunedIDs(removed), "others are protected, whatever the cap")
	removed, err = s.Prune(t.Context(), Policy{Unused: 0})
	require.NoError(t, err)
	require.Empty(t, removed)
}

// TestHold: nothing that a build or an export works with goes away.
func TestHold(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	first, second := s.Hold("image"), s.Hold("image")
	_, err := s.Sync(t.Context(), request("image", plainTar(t, 10)))
	require.NoError(t, err)
	first()
	first()
	require.ErrorIs(t, s.Remove(t.Context(), "image"), ErrInUse)
	removed, err := s.Prune(t.Context(), Policy{})
	require.NoError(t, err)
	require.Empty(t, removed)
	second()
	require.NoError(t, s.Remove(t.Context(), "image"))
	requireClean(t, s)
}

// TestLocalImages: names of this host's own cannot be taken for Glance's, nor hide other bytes.
func TestLocalImages(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 10)
	for _, r := range []Request{{ID: "local-x"}, {ID: "36adbebc-e44e-480c-a879-237d84122861", Local: true}} {
		r.Source = &bytesSource{data: data}
		_, err := s.Sync(t.Context(), r)
		require.ErrorContains(t, err, LocalPrefix)
	}
	local := Request{ID: "local-x", Local: true, Source: &bytesSource{data: data}}
	_, err := s.Sync(t.Context(), local)
	require.NoError(t, err)
	local.Source = &bytesSource{data: plainTar(t, 20)}
	_, err = s.Sync(t.Context(), local)
	require.ErrorIs(t, err, ErrExists)
	src := &bytesSource{data: data}
	r := request("36adbebc-e44e-480c-a879-237d84122861", data)
	r.Source = src
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Zero(t, src.opens(), "a local import is a pre-load for the same bytes in Glance")
	require.Equal(t, []string{"local-x"}, img.SameContent)
}

func TestTransfers(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	r := request("image", plainTar(t, 1<<20))
	src := &bytesSource{data: r.Source.(*bytesSource).data, block: make(chan struct{})}
	r.Source = src
	done := make(chan error, 1)
	go func() {
		_, err := s.Sync(t.Context(), r)
		done <- err
	}()
	require.Eventually(t, func() bool { return len(s.Transfers()) == 1 }, patience, time.Millisecond)
	got := s.Transfers()[0]
	require.Equal(t, "image", got.ID)
	require.Equal(t, r.Size, got.Size)
	close(src.block)
	require.NoError(t, <-done)
	require.Empty(t, s.Transfers())
}

func TestPruneOrphan(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 10)
	img, err := s.Sync(t.Context(), request("image", data))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(s.path("aliases", "image.json"))) // a crash between content and alias
	s, err = Open(s.o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	src := &bytesSource{data: data}
	r := request("image", data)
	r.Source = src
	again, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, img.Path, again.Path)
	require.Zero(t, src.opens(), "the content is known by its hash")
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(s.path("aliases", "image.json")))
	s, err = Open(s.o)
	require.NoError(t, err)
	_, err = s.Prune(t.Context(), Policy{})
	require.NoError(t, err)
	requireClean(t, s)
	require.NoError(t, s.Close())
}

// TestDirectoriesAbove: a pre-load may be the first to make them, and guests pass through them later.
func TestDirectoriesAbove(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "compute-agent", "images")
	s, err := Open(Options{Dir: dir})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	for name, want := range map[string]os.FileMode{dir: 0o700, filepath.Dir(dir): 0o755, filepath.Dir(filepath.Dir(dir)): 0o755} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, want, info.Mode().Perm(), name)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	_, err := Open(s.o)
	require.ErrorIs(t, err, ErrLocked)
	_, err = Open(Options{Dir: "relative"})
	require.Error(t, err)
}

// TestUnlockedBesideANewChild: what a process that has been forked, and does not run its program yet, has of the lock keeps nobody out.
func TestUnlockedBesideANewChild(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	child, err := unix.FcntlInt(s.lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(child)
	reopen(t, s)
}

// TestRecovery: what crashes and power cuts leave.
func TestRecovery(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 10)
	img, err := s.Sync(t.Context(), request("image", data))
	require.NoError(t, err)
	require.NoError(t, s.Acquire("image", "instance"))
	_, err = s.Sync(t.Context(), request("cut", plainTar(t, 20)))
	require.NoError(t, err)
	cut, _, err := s.Get(t.Context(), "cut")
	require.NoError(t, err)
	require.NoError(t, s.Close())

	info, err := os.Stat(s.o.Dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	var c content
	_, err = readJSON(s.path("images", img.Fingerprint, "image.json"), &c)
	require.NoError(t, err)
	require.Empty(t, c.BootID, "the data is on disk after Close")

	require.NoError(t, os.MkdirAll(s.path("staging", "import-1", "tree", "etc"), 0o700))
	require.NoError(t, os.WriteFile(s.path("staging", "record-1"), []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(s.path("aliases", "broken.json"), nil, 0o600))
	require.NoError(t, os.Mkdir(s.path("images", "half"), 0o700))
	// One image of a kernel that is gone and never reached the disk, one record that a power cut emptied.
	c.BootID = "of another boot"
	text, err := json.Marshal(c)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.path("images", img.Fingerprint, "image.json"), text, 0o600))
	require.NoError(t, os.Truncate(s.path("images", cut.Fingerprint, "image.json"), 0))

	s, err = Open(s.o)
	require.NoError(t, err)
	defer s.Close()
	requireClean(t, s)
	again, err := s.Sync(t.Context(), request("image", data))
	require.NoError(t, err)
	require.Equal(t, img.Path, again.Path)
	require.Equal(t, []string{"instance"}, again.Instances, "the reference outlives the image")
	require.FileExists(t, filepath.Join(again.Path, "etc/hostname"))
}

func TestClosed(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.Close())
	_, err := s.Sync(t.Context(), request("image", plainTar(t, 10)))
	require.ErrorIs(t, err, os.ErrClosed)
}

// TestCloseCancels: Close does not wait for a slow server.
func TestCloseCancels(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	src := &bytesSource{data: []byte("x"), block: make(chan struct{})}
	r := request("image", plainTar(t, 10))
	r.Source = src
	done := make(chan error, 1)
	go func() {
		_, err := s.Sync(t.Context(), r)
		done <- err
	}()
	require.Eventually(t, func() bool { return src.opens() == 1 }, patience, time.Millisecond)
	require.NoError(t, s.Close())
	require.Error(t, <-done)
}

// TestSettleIsOfOneImport: that the first import of a content is on disk says nothing of the second.
func TestSettleIsOfOneImport(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	img, err := s.Sync(t.Context(), request("image", plainTar(t, 10)))
	require.NoError(t, err)
	s.work.Wait()
	s.mu.Lock()
	again := s.contents[img.Fingerprint]
	again.BootID = "boot"
	s.contents[img.Fingerprint] = again
	s.mu.Unlock()

	first := again
	first.imported = again.imported.Add(-time.Second)
	require.NoError(t, s.settle(first))
	now, _ := s.still(again)
	require.Equal(t, "boot", now.BootID)
	require.NoError(t, s.settle(again))
	now, _ = s.still(again)
	require.Empty(t, now.BootID)
	require.Positive(t, now.DiskSize)
	s.work.Wait()
	require.Empty(t, readDir(t, s.path("staging")))
}

// TestAmendTogether: nothing that is learnt of a content at the same time is lost.
func TestAmendTogether(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	img, err := s.Sync(t.Context(), request("image", plainTar(t, 10)))
	require.NoError(t, err)
	c, ok := s.still(content{Fingerprint: img.Fingerprint, imported: img.Imported})
	require.True(t, ok)
	var group sync.WaitGroup
	names := []string{"sha1", "sha224", "sha384", "sha3_256", "sha3_384", "sha3_512"}
	for _, name := range names {
		group.Go(func() {
			if _, err := s.learn(c, content{Hashes: map[string]string{"sha256": c.Hashes["sha256"], name: name}}); err != nil {
				t.Errorf("learn %s: %v", name, err)
			}
		})
	}
	group.Wait()
	s = reopen(t, s)
	img, _, err = s.Get(t.Context(), "image")
	require.NoError(t, err)
	for _, name := range names {
		require.Equal(t, name, img.Hashes[name])
	}
}
