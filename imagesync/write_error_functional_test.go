//go:build functional

package imagesync

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// TestWriteError: an image that the host's disk did not take is whole as long as the kernel remembers it, and is fetched again for the next
// server, although somebody else on the host was told of the failure before the store asked.
func TestWriteError(t *testing.T) {
	h := newFailingHost(t)
	data := powerTar(t, 4, "./", nil)
	elsewhere := openStore(t)
	good, err := elsewhere.Sync(t.Context(), request("image", data))
	require.NoError(t, err)
	want := treeOf(t, filepath.Dir(good.Path))

	var told []error // to others, before the store asks
	k := running()
	k.syncfs = func(witness *os.File) error {
		told = append(told, h.sync(t), h.sync(t))
		return unix.Syncfs(int(witness.Fd()))
	}
	open := func() *Store {
		s, err := openUnder(k, Options{Dir: filepath.Join(h.dir, "images"), ReserveBytes: 1})
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	h.fill(t)
	src := &bytesSource{data: data}
	r := request("image", data)
	r.Source = src
	bad, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, s.Acquire("image", "instance"))
	s.work.Wait()
	require.Len(t, told, 2)
	require.Error(t, told[0])
	require.NoError(t, told[1], "the kernel tells it once")
	require.Equal(t, want, treeOf(t, filepath.Dir(bad.Path)), "in the kernel's memory it is whole")
	require.NoError(t, s.Close())

	h.empty(t)
	evict(t, bad.Path)
	require.NotEqual(t, want, treeOf(t, filepath.Dir(bad.Path)), "nothing has failed, and nothing is tested")
	s = open() // the next agent
	s.work.Wait()
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 2, src.opens())
	s.work.Wait()
	evict(t, img.Path)
	require.Equal(t, want, treeOf(t, filepath.Dir(img.Path)))
	_, err = s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 2, src.opens(), "this one is on the disk")
	require.NoError(t, s.Close())
}

// failingHost has a file system whose disk can run out of room: it is a sparse file in memory. Writes fail then that the file system
// has accepted long before, as those to a disk that breaks do, which needs no device mapper. Without a journal it goes on after that.
type failingHost struct{ memory, dir string }

func newFailingHost(t *testing.T) *failingHost {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	memory := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", memory, "tmpfs", 0, "size=256m,mode=755"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(memory, unix.MNT_DETACH)) })
	h := &failingHost{memory: memory, dir: filepath.Join(memory, "host")}
	require.NoError(t, os.Mkdir(h.dir, 0o755))
	disk := filepath.Join(memory, "disk")
	run(t, "mkfs.ext4 -q -F -O ^has_journal "+disk+" 192M")
	run(t, "mount -o loop "+disk+" "+h.dir)
	t.Cleanup(func() { require.NoError(t, unix.Unmount(h.dir, 0)) })
	return h
}

// fill leaves no room for a block that is not on the disk yet, empty gives it back.
func (h *failingHost) fill(t *testing.T) {
	t.Helper()
	require.NoError(t, h.sync(t))
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(h.memory, &st))
	h.resize(t, strconv.FormatUint((st.Blocks-st.Bfree)*uint64(st.Bsize), 10))
}

func (h *failingHost) empty(t *testing.T) {
	t.Helper()
	h.resize(t, "256m")
}

func (h *failingHost) resize(t *testing.T, size string) {
	t.Helper()
	require.NoError(t, unix.Mount("tmpfs", h.memory, "tmpfs", unix.MS_REMOUNT, "size="+size))
}

// sync is what any other program of the host may do at any time.
func (h *failingHost) sync(t *testing.T) error {
	t.Helper()
	dir, err := os.Open(h.dir)
	require.NoError(t, err)
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// evict has the kernel forget what it remembers of the files, as it does when it needs the room.
func evict(t *testing.T, tree string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}))
}
