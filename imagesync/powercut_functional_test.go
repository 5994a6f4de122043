//go:build functional

package imagesync

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// powerCuts of TestPowerCut; each is at another moment of imports, removals and changes of records.
const powerCuts = 16

// Pauses between what goes on beside the imports. No outcome hangs on them: without any, and with 300 ms, as many images are lost and as
// many survive. They leave the processors to the imports, which is what the cut is to meet.
const (
	learnPause = 10 * time.Millisecond
	forcePause = 5 * time.Millisecond
)

// TestPowerCut: a host that loses its power while images come and go has whole images or none when it is back, those that were on disk
// among them, and takes the others again.
func TestPowerCut(t *testing.T) {
	h := newLossyHost(t)
	images := powerImages(t, h)
	h.start(t)
	s := h.open(t)
	keep := images["kept"].request(t)
	keep.Keep = true
	_, err := s.Sync(t.Context(), keep)
	require.NoError(t, err)
	require.NoError(t, s.Acquire("kept", "instance"))
	require.NoError(t, s.Close())
	h.force(t)

	survived, lost, halves := 0, 0, 0
	for range powerCuts {
		s = h.open(t)
		wait := h.busy(t, s, images)
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		h.cut(t)
		wait()
		require.NoError(t, s.Close())
		h.stop(t)

		h.start(t)
		if len(readDir(t, s.path("staging"))) > 0 {
			halves++
		}
		s = h.open(t)
		found := wholeOrNone(t, s, images)
		require.Contains(t, found, "kept")
		survived += len(found) - 1
		lost += len(images) - len(found)
		for id, image := range images {
			img, err := s.Sync(t.Context(), image.request(t))
			require.NoError(t, err)
			require.Equal(t, image.tree, treeOf(t, filepath.Dir(img.Path)), id)
		}
		require.NoError(t, s.Close())
	}
	t.Logf("%d images were there after a cut, %d had to be fetched again; %d cuts left something in staging", survived, lost, halves)
	require.Positive(t, survived)
	require.Positive(t, lost)
	require.Positive(t, halves)
}

// wholeOrNone lists the images of a store, which are all whole, and nothing else is there.
func wholeOrNone(t *testing.T, s *Store, images map[string]powerImage) (found []string) {
	t.Helper()
	s.work.Wait()
	require.Empty(t, readDir(t, s.path("staging")))
	list, err := s.List(t.Context())
	require.NoError(t, err)
	for _, img := range list {
		found = append(found, img.ID)
		require.Equal(t, images[img.ID].tree, treeOf(t, filepath.Dir(img.Path)), img.ID)
		require.Equal(t, images[img.ID].hash, img.Hashes["sha512"])
		if img.ID == "kept" {
			require.True(t, img.Keep)
			require.Equal(t, []string{"instance"}, img.Instances)
		}
	}
	for _, fingerprint := range readDir(t, s.path("images")) { // one whose id was lost is whole, too
		i := slices.IndexFunc(list, func(img Image) bool { return img.Fingerprint == fingerprint })
		if i >= 0 {
			continue
		}
		tree := treeOf(t, s.path("images", fingerprint))
		whole := false
		for _, image := range images {
			whole = whole || fmt.Sprint(image.tree) == fmt.Sprint(tree)
		}
		require.True(t, whole, "%v", tree)
	}
	require.Len(t, readDir(t, s.path("aliases")), len(list))
	return found
}

// powerImage is an image with what an import makes of it on a host that keeps its power.
type powerImage struct {
	request func(t *testing.T) Request
	hash    string
	tree    map[string]string
}

// powerImages are a plain, a unified and a split image, and one that is to stay.
func powerImages(t *testing.T, h *lossyHost) map[string]powerImage {
	t.Helper()
	whole := func(data []byte) func(id string) Request {
		return func(id string) Request { return request(id, data) }
	}
	root := powerTar(t, 2, "", nil)
	halves := func(id string) Request {
		r := request(id, root)
		r.MetadataImage = part("metadata", metadataTar(t, unifiedMetadata))
		return r
	}
	s := openStore(t, func(o *Options) { o.Dir = filepath.Join(filepath.Dir(h.disk), "images") })
	images := map[string]powerImage{}
	for id, r := range map[string]func(id string) Request{
		"plain":   whole(powerTar(t, 0, "./", nil)),
		"unified": whole(powerTar(t, 1, "rootfs/", map[string]string{"metadata.yaml": unifiedMetadata, "templates/hostname.tpl": "{{ name }}"})),
		"split":   halves,
		"kept":    whole(powerTar(t, 3, "./", nil)),
	} {
		img, err := s.Sync(t.Context(), r(id))
		require.NoError(t, err)
		images[id] = powerImage{
			request: func(t *testing.T) Request { t.Helper(); return r(id) },
			hash:    r(id).HashValue, tree: treeOf(t, filepath.Dir(img.Path)),
		}
	}
	require.NoError(t, s.Close())
	return images
}

// powerTar is a root file system with some hundred files of all sizes up to 40 KiB, and more.
func powerTar(t *testing.T, seed byte, prefix string, more map[string]string) []byte {
	t.Helper()
	random := rand.NewChaCha8([32]byte{seed})
	headers, contents := rootfs(prefix), map[string]string{}
	if prefix == "" {
		headers = headers[1:]
	}
	for name, text := range more {
		headers, contents[name] = append(headers, &tar.Header{Name: name, Mode: 0o644}), text
	}
	for n := range 300 {
		data := make([]byte, random.Uint64()%40_000)
		_, _ = random.Read(data)
		name := prefix + "usr/share/" + strconv.Itoa(n%10) + "/" + strconv.Itoa(n)
		headers, contents[name] = append(headers, &tar.Header{Name: name, Mode: 0o644}), string(data)
		if n%20 == 0 {
			headers = append(headers,
				&tar.Header{Name: name + ".hard", Typeflag: tar.TypeLink, Linkname: name},
				&tar.Header{Name: name + ".soft", Typeflag: tar.TypeSymlink, Linkname: "/etc/hostname"})
		}
	}
	return makeTar(t, headers, contents)
}

// treeOf is all that is in an image's directory, but for the store's own record and the time in metadata.yaml.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case name == "image.json":
			return nil
		case name == "metadata.yaml":
			_, err := readMetadata(path)
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var what string
		switch {
		case info.Mode().IsRegular():
			var data []byte
			data, err = os.ReadFile(path)
			sum := sha256.Sum256(data)
			what = hex.EncodeToString(sum[:8])
		case info.Mode()&fs.ModeSymlink != 0:
			what, err = os.Readlink(path)
		}
		st := info.Sys().(*syscall.Stat_t)
		links := st.Nlink
		if d.IsDir() {
			links = 0
		}
		tree[name] = fmt.Sprint(info.Mode(), " ", st.Uid, " ", links, " ", what)
		return err
	}))
	return tree
}

// lossyHost is a file system that can forget what it has not written. Its disk is in memory, so that the machine's own does not
// take part with all that others do there.
type lossyHost struct {
	disk, dir string
	boots     int
	off       atomic.Bool // no error counts from now on
}

func newLossyHost(t *testing.T) *lossyHost {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	memory := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", memory, "tmpfs", 0, "size=256m,mode=755"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(memory, unix.MNT_DETACH)) })
	h := &lossyHost{disk: filepath.Join(memory, "disk"), dir: filepath.Join(memory, "host")}
	require.NoError(t, os.Mkdir(h.dir, 0o755))
	run(t, "mkfs.ext4 -q -F "+h.disk+" 192M")
	t.Cleanup(func() { _ = unix.Unmount(h.dir, 0) }) // it is mounted if the test has failed
	return h
}

// start mounts the file system. It may write names before what the files hold, also of a file that takes another's place, as
// XFS does, which ext4 by itself does not. It does not discard: what it frees while it is stopped would be gone from a disk on which it is not free.
func (h *lossyHost) start(t *testing.T) {
	t.Helper()
	run(t, "mount -o loop,noauto_da_alloc "+h.disk+" "+h.dir)
	h.boots++
	h.off.Store(false)
}

// open opens the store, under another kernel each time that the host was started.
func (h *lossyHost) open(t *testing.T) *Store {
	t.Helper()
	boot, k := "boot "+strconv.Itoa(h.boots), running()
	k.bootID = func() (string, error) { return boot, nil }
	s, err := openUnder(k, Options{Dir: filepath.Join(h.dir, "images"), ReserveBytes: 1})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// cut stops the file system as it is on its disk (ext4's EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH).
func (h *lossyHost) cut(t *testing.T) {
	t.Helper()
	const ioctlShutdown, noLogFlush = 0x8004587d, 2
	dir, err := os.Open(h.dir)
	require.NoError(t, err)
	defer dir.Close()
	h.off.Store(true)
	require.NoError(t, unix.IoctlSetPointerInt(int(dir.Fd()), ioctlShutdown, noLogFlush))
}

func (h *lossyHost) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, unix.Unmount(h.dir, 0), "everything is closed")
}

func (h *lossyHost) force(t *testing.T) {
	t.Helper()
	dir, err := os.Open(h.dir)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, unix.Syncfs(int(dir.Fd())))
}

// busy has images imported and removed, and records changed, until the power is cut; then wait returns. Somebody else on the
// host forces what is his to disk all the time, so that the journal is written at moments which nobody knows.
func (h *lossyHost) busy(t *testing.T, s *Store, images map[string]powerImage) (wait func()) {
	t.Helper()
	var group sync.WaitGroup
	until := func(what string, do func(n int) error) {
		group.Go(func() {
			for n := 0; !h.off.Load(); n++ {
				if err := do(n); err != nil && !h.off.Load() {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	for _, ids := range [][]string{{"plain", "unified"}, {"split"}} {
		until("import", func(n int) error {
			id := ids[n%len(ids)]
			if err := s.Remove(t.Context(), id); err != nil {
				return err
			}
			_, err := s.Sync(t.Context(), images[id].request(t))
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			return err
		})
	}
	until("learn", func(n int) error {
		time.Sleep(learnPause)
		return amendKept(t.Context(), s, n)
	})
	other, err := os.Create(filepath.Join(h.dir, "other"))
	require.NoError(t, err)
	until("force", func(n int) error {
		time.Sleep(forcePause)
		if _, err := other.WriteAt([]byte{byte(n)}, 0); err != nil {
			return err
		}
		return other.Sync()
	})
	return func() {
		group.Wait()
		require.NoError(t, other.Close())
	}
}

// amendKept changes both records of the image that is to stay.
func amendKept(ctx context.Context, s *Store, n int) error {
	img, _, err := s.Get(ctx, "kept")
	if err != nil {
		return err
	}
	s.mu.Lock()
	have, a := s.contents[img.Fingerprint], s.aliases["kept"]
	a.Keep = false
	err = s.use(a, true)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	learnt := content{Hashes: map[string]string{"sha256": have.Hashes["sha256"], "sha384": strconv.Itoa(n)}}
	_, err = s.learn(have, learnt)
	return err
}
