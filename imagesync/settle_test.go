package imagesync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fragileHost is a host that can be booted anew, and whose disk can fail.
type fragileHost struct {
	dir   string
	boot  string
	fails atomic.Bool // the kernel tells of a write that has failed

	exchange func(a, b string) error
}

var errDisk = errors.New("input/output error")

func newFragileHost(t *testing.T) *fragileHost {
	t.Helper()
	return &fragileHost{dir: filepath.Join(t.TempDir(), "images"), boot: "boot-1", exchange: exchange}
}

// start opens the store, as an agent of this host does.
func (h *fragileHost) start(t *testing.T) *Store {
	t.Helper()
	s, err := openUnder(h.kernel(), Options{Dir: h.dir, ReserveBytes: 1})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (h *fragileHost) kernel() kernel {
	boot := h.boot
	return kernel{
		bootID: func() (string, error) { return boot, nil },
		syncfs: func(*os.File) error {
			if h.fails.Load() {
				return errDisk
			}
			return nil
		},
		exchange: h.exchange,
	}
}

// kill ends an agent that had an image and did not know yet whether it was on the disk.
func (h *fragileHost) kill(t *testing.T, s *Store, fingerprint string) {
	t.Helper()
	require.NoError(t, s.Close())
	var c content
	_, err := readJSON(s.path("images", fingerprint, "image.json"), &c)
	require.NoError(t, err)
	c.BootID = h.boot
	require.NoError(t, s.writeJSON(s.path("images", fingerprint, "image.json"), c, true))
}

// counted is a request whose source tells how often it was opened.
func counted(t *testing.T) (Request, *bytesSource) {
	t.Helper()
	data := plainTar(t, 10)
	src := &bytesSource{data: data}
	r := request("image", data)
	r.Source = src
	return r, src
}

// usedDoubtful imports an image that the disk does not take, for an instance, and ends the agent.
func (h *fragileHost) usedDoubtful(t *testing.T) (Request, *bytesSource) {
	t.Helper()
	s := h.start(t)
	r, src := counted(t)
	h.fails.Store(true)
	_, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, s.Acquire("image", "instance"))
	require.NoError(t, s.Close())
	h.fails.Store(false)
	return r, src
}

// fingerprint is what the store calls the content.
func (s *bytesSource) fingerprint() string {
	sum := sha256.Sum256(s.data)
	return hex.EncodeToString(sum[:])
}

// TestDiskFailsAtImport: what could not be written is fetched again for the next server, and no guest that runs loses its files.
func TestDiskFailsAtImport(t *testing.T) {
	t.Parallel()
	for _, used := range []bool{false, true} {
		h := newFragileHost(t)
		s := h.start(t)
		r, src := counted(t)
		h.fails.Store(true)
		img, err := s.Sync(t.Context(), r)
		require.NoError(t, err, "a build does not wait for the disk")
		if used {
			require.NoError(t, s.Acquire("image", "instance"))
		}
		s.work.Wait()
		running, err := os.Open(filepath.Join(img.Path, "etc")) // as a mount has it
		require.NoError(t, err)
		defer running.Close()
		h.fails.Store(false)

		again, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, 2, src.opens())
		require.Equal(t, img.Path, again.Path, "servers find it at their next start")
		s.work.Wait()
		require.Empty(t, readDir(t, s.path("staging")))
		names, _ := running.Readdirnames(-1)
		require.Equal(t, used, len(names) > 0, "a guest runs on what it has")
		_, err = s.Sync(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, 2, src.opens(), "this one is on the disk")
		require.NoError(t, s.Close())

		s = h.start(t)
		require.Equal(t, used, len(readDir(t, s.path("retired"))) > 0)
		require.NoError(t, s.Close())
		h.boot = "boot-2"
		s = h.start(t)
		require.Empty(t, readDir(t, s.path("retired")))
		got, ok, err := s.Get(t.Context(), "image")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, used, len(got.Instances) > 0)
	}
}

// TestFailedImportIsRemembered by the agent's next start, for which the kernel has no word of it any more, and by the next boot.
func TestFailedImportIsRemembered(t *testing.T) {
	t.Parallel()
	h := newFragileHost(t)
	r, src := h.usedDoubtful(t)
	s := h.start(t)
	s.work.Wait()
	_, ok, err := s.Get(t.Context(), "image")
	require.NoError(t, err)
	require.True(t, ok, "a server has it")
	require.NoError(t, s.Close())
	s = h.start(t)
	_, err = s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 2, src.opens())
	h.kill(t, s, src.fingerprint())
	h.boot = "boot-2"
	s = h.start(t)
	_, ok, err = s.Get(t.Context(), "image")
	require.NoError(t, err)
	require.False(t, ok, "it is not on the disk")
}

// TestKilledBeforeSettled: an image whose agent ended before it knew is removed if no server has it. A server keeps
// it, also over a reboot, and the next one gets it fetched again.
func TestKilledBeforeSettled(t *testing.T) {
	t.Parallel()
	h := newFragileHost(t)
	s := h.start(t)
	r, src := counted(t)
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	h.kill(t, s, img.Fingerprint)
	s = h.start(t)
	_, ok, err := s.Get(t.Context(), "image")
	require.NoError(t, err)
	require.False(t, ok)
	require.Empty(t, readDir(t, s.path("images")))
	require.Empty(t, readDir(t, s.path("aliases")))

	_, err = s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, s.Acquire("image", "instance"))
	h.kill(t, s, img.Fingerprint)
	require.NoError(t, h.start(t).Close())
	h.boot = "boot-2"
	s = h.start(t)
	_, ok, err = s.Get(t.Context(), "image")
	require.NoError(t, err)
	require.True(t, ok, "it was forced to disk")
	require.Equal(t, 2, src.opens())
	other := r
	other.ID = "other"
	_, err = s.Sync(t.Context(), other)
	require.NoError(t, err)
	require.Equal(t, 3, src.opens(), "the same bytes under another id are no better")
	require.NoError(t, s.Close())

	s = h.start(t)
	require.NoError(t, s.Release("image", "instance"))
	_, err = s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 3, src.opens(), "it is good for both")
}

// TestKilledBeforeSettledOnAFailingDisk: what cannot be forced to disk is not taken for something that is.
func TestKilledBeforeSettledOnAFailingDisk(t *testing.T) {
	t.Parallel()
	h := newFragileHost(t)
	s := h.start(t)
	r, _ := counted(t)
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, s.Acquire("image", "instance"))
	h.kill(t, s, img.Fingerprint)
	h.fails.Store(true)
	require.NoError(t, h.start(t).Close())
	h.boot = "boot-2"
	s = h.start(t)
	_, ok, err := s.Get(t.Context(), "image")
	require.NoError(t, err)
	require.False(t, ok)
}

// TestImportByHandIsOnDisk when it is reported.
func TestImportByHandIsOnDisk(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Request){
		"local": func(r *Request) { r.ID, r.Local = LocalPrefix+"image", true },
		"kept":  func(r *Request) { r.Keep = true },
	} {
		h := newFragileHost(t)
		s := h.start(t)
		r, src := counted(t)
		change(&r)
		h.fails.Store(true)
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, errDisk, name)
		h.fails.Store(false)
		_, err = s.Sync(t.Context(), r)
		require.NoError(t, err, name)
		require.Equal(t, 2, src.opens(), name)
		s.mu.Lock()
		require.Empty(t, s.contents[src.fingerprint()].BootID, name)
		s.mu.Unlock()

		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errDisk)
		require.ErrorIs(t, s.settledFor(ctx, r, &flight{}), errDisk, name)
		_, ok, err := s.Get(t.Context(), r.ID)
		require.NoError(t, err)
		require.Equal(t, !r.Local, ok, "nobody was told that there is one")
	}
}

// TestOthersImportIsNotSettled by one that began later.
func TestOthersImportIsNotSettled(t *testing.T) {
	t.Parallel()
	h := newFragileHost(t)
	s := h.start(t)
	r, _ := counted(t)
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	s.work.Wait()
	s.mu.Lock()
	c := s.contents[img.Fingerprint]
	c.BootID = h.boot // its import is at it
	s.contents[img.Fingerprint] = c
	s.mu.Unlock()
	other := r
	other.ID, other.HashAlgo, other.HashValue = "other", "", ""
	_, err = s.Sync(t.Context(), other)
	require.NoError(t, err)
	s.work.Wait()
	now, _ := s.still(c)
	require.Equal(t, h.boot, now.BootID)
}

// TestSupplantFails: a content that cannot be replaced stays what it is.
func TestSupplantFails(t *testing.T) {
	t.Parallel()
	h := newFragileHost(t)
	h.exchange = func(string, string) error { return errDisk }
	s := h.start(t)
	r, _ := counted(t)
	h.fails.Store(true)
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	s.work.Wait()
	for _, used := range []bool{false, true} {
		if used {
			require.NoError(t, s.Acquire("image", "instance"))
		}
		_, err = s.Sync(t.Context(), r)
		require.ErrorIs(t, err, errDisk)
		require.DirExists(t, img.Path)
		require.Empty(t, readDir(t, s.path("staging")))
	}
	require.Empty(t, readDir(t, s.path("retired", h.boot)))
	require.NoError(t, os.RemoveAll(s.path("retired")))
	require.NoError(t, os.WriteFile(s.path("retired"), nil, 0o600))
	_, err = s.Sync(t.Context(), r)
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.DirExists(t, img.Path)
	require.NoError(t, os.Remove(s.path("retired")))
	require.NoError(t, s.Close())
	h.exchange = exchange
	_, err = h.start(t).Sync(t.Context(), r)
	require.NoError(t, err)
}

// TestKilledWhileSupplanting: whatever the agent had done when it was killed, servers have their image, and guests their files.
func TestKilledWhileSupplanting(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		h := newFragileHost(t)
		r, src := h.usedDoubtful(t)
		killed := h.dir + "-killed" // what the disk has at that moment
		h.exchange = func(a, b string) error {
			if done {
				require.NoError(t, exchange(a, b))
			}
			require.NoError(t, exec.Command("cp", "-al", h.dir, killed).Run())
			return errDisk
		}
		s := h.start(t)
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, errDisk)
		require.NoError(t, s.Close())

		h.dir, h.exchange = killed, exchange
		s = h.start(t)
		got, ok, err := s.Get(t.Context(), "image")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, []string{"instance"}, got.Instances)
		require.DirExists(t, filepath.Join(got.Path, "etc"))
		require.Len(t, readDir(t, s.path("retired", h.boot)), 1, "guests may run on it")
		s.work.Wait()
		_, err = s.Sync(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, 3, src.opens())
	}
}

// TestExchange: in both ways two directories change places, and stay where they are when one is missing.
func TestExchange(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]func(a, b string) error{"at once": exchange, "in steps": exchangeInSteps} {
		dir := t.TempDir()
		a, b, missing := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "missing")
		require.NoError(t, os.MkdirAll(filepath.Join(a, "of-a"), 0o700))
		require.NoError(t, os.Mkdir(b, 0o700))
		require.NoError(t, exchange(a, b), name)
		require.DirExists(t, filepath.Join(b, "of-a"), name)
		require.ErrorIs(t, exchange(a, missing), os.ErrNotExist, name)
		require.ErrorIs(t, exchange(missing, b), os.ErrNotExist, name)
		require.ElementsMatch(t, []string{"a", "b"}, readDir(t, dir), name)
		require.DirExists(t, filepath.Join(b, "of-a"), name)
	}
}
