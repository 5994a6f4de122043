package control

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

func TestMain(m *testing.M) {
	reqctx.Log(context.Background()).Logger.SetOutput(io.Discard)
	goleak.VerifyTestMain(m)
}

// patience is more than anything here takes, on a busy machine with a slow disk too.
const patience = time.Minute

const glanceID = "36adbebc-e44e-480c-a879-237d84122861"

// archive is the smallest root file system, and size bytes more.
func archive(t testing.TB, size int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "sbin/init", Mode: 0o755}, {Name: "large", Mode: 0o644, Size: int64(size)},
	} {
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write(make([]byte, h.Size))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// source serves one image of a fake Glance; reads wait for block.
type source struct {
	data  []byte
	block chan struct{}
}

func (s *source) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if s.block != nil {
		select {
		case <-s.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return io.NopCloser(bytes.NewReader(s.data[offset:])), nil
}

// agent is a store behind a socket, as a running agent has it.
type agent struct {
	t      *testing.T
	store  *imagesync.Store
	glance *source
	dir    string // of the store
	path   string // of the socket
	stop   func()

	leftovers []Leftover
	starting  bool
}

// collect is the agent's Collector.
func (a *agent) collect(_ context.Context, dry bool) ([]Leftover, error) {
	if a.starting {
		return nil, ErrStarting
	}
	if !dry {
		for i := range a.leftovers {
			a.leftovers[i].Removed = a.leftovers[i].Removable
		}
	}
	return a.leftovers, nil
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	store, err := imagesync.Open(imagesync.Options{Dir: dir, ReserveBytes: 1, RetryDelay: time.Millisecond})
	require.NoError(t, err)
	a := &agent{t: t, store: store, dir: dir, glance: &source{data: archive(t, 100_000)}, path: filepath.Join(t.TempDir(), SocketName)}
	a.serve()
	t.Cleanup(func() {
		a.stop()
		require.NoError(t, store.Close())
	})
	return a
}

func (a *agent) serve() {
	listener, err := Listen(a.t.Context(), a.path)
	require.NoError(a.t, err)
	ctx, cancel := context.WithCancel(a.t.Context())
	done := make(chan error, 1)
	local := &Local{Store: a.store, Fetch: func(_ context.Context, id string) (imagesync.Request, error) {
		sum := sha512.Sum512(a.glance.data)
		return imagesync.Request{ID: id, Size: int64(len(a.glance.data)), HashAlgo: "sha512", HashValue: hex.EncodeToString(sum[:]), Source: a.glance}, nil
	}}
	go func() { done <- Serve(ctx, listener, local, a.collect) }()
	stopped := false
	a.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(a.t, <-done)
		}
	}
}

func (a *agent) connect() *Client {
	a.t.Helper()
	c, err := Connect(a.t.Context(), a.path)
	require.NoError(a.t, err)
	a.t.Cleanup(func() { _ = c.Close() })
	return c
}

// nothingStaged requires that no half import is left, once the records of whole ones are written.
func (a *agent) nothingStaged() {
	a.t.Helper()
	require.Eventually(a.t, func() bool {
		staged, err := os.ReadDir(filepath.Join(a.dir, "staging"))
		return err == nil && len(staged) == 0
	}, patience, time.Millisecond)
}

func TestImagesOverTheSocket(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	c := a.connect()
	data := archive(t, 3<<20)
	imported, err := c.Import(t.Context(), ImportOptions{ID: "local-x", Body: bytes.NewReader(data), Size: int64(len(data)), Keep: true}, nil)
	require.NoError(t, err)
	require.False(t, imported.Existing)
	require.Equal(t, "local-x", imported.Image.ID)
	unsized, err := c.Import(t.Context(), ImportOptions{ID: "local-y", Body: io.MultiReader(bytes.NewReader(data)), Size: -1}, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"local-x"}, unsized.Image.SameContent)
	_, err = c.Import(t.Context(), ImportOptions{ID: "local-x", Body: bytes.NewReader(data), Size: int64(len(data))}, nil)
	require.ErrorIs(t, err, imagesync.ErrExists)
	fetched, err := c.Import(t.Context(), ImportOptions{ID: glanceID, Size: -1}, nil)
	require.NoError(t, err)
	require.False(t, fetched.Existing)
	fetched, err = c.Import(t.Context(), ImportOptions{ID: glanceID, Size: -1}, nil)
	require.NoError(t, err)
	require.True(t, fetched.Existing)

	local := &Local{Store: a.store}
	want, err := local.List(t.Context())
	require.NoError(t, err)
	got, err := c.List(t.Context())
	require.NoError(t, err)
	want.Free, got.Free = 0, 0         // of a machine where others write
	want.DiskSize, got.DiskSize = 0, 0 // of a disk that allots blocks when it is written to, later
	for i := range min(len(want.Images), len(got.Images)) {
		want.Images[i].DiskSize, got.Images[i].DiskSize = 0, 0 // measured then
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("listing over the socket (-want +got):\n%s", diff)
	}

	require.NoError(t, a.store.Acquire(glanceID, "server-1"))
	err = c.Remove(t.Context(), glanceID)
	var used *imagesync.InUseError
	require.ErrorAs(t, err, &used)
	require.Equal(t, []string{"server-1"}, used.Instances)
	require.ErrorIs(t, c.Remove(t.Context(), "no-such"), imagesync.ErrNotFound)
	dry, err := c.Prune(t.Context(), PruneOptions{DryRun: true})
	require.NoError(t, err)
	require.Len(t, dry, 1, "one is used, one is kept")
	removed, err := c.Prune(t.Context(), PruneOptions{})
	require.NoError(t, err)
	require.Equal(t, "local-y", removed[0].ID)
	removed, err = c.Prune(t.Context(), PruneOptions{})
	require.NoError(t, err)
	require.Equal(t, []Pruned{}, removed, "nothing, which is not the same as no answer")
	require.NoError(t, c.Remove(t.Context(), "local-x"))
	a.nothingStaged()
}

// TestRefusedWhileSending: the reason arrives although most of the body is not sent yet.
func TestRefusedWhileSending(t *testing.T) {
	t.Parallel()
	c := newAgent(t).connect()
	body := io.MultiReader(bytes.NewReader([]byte("\x7fELF")), zeros{})
	_, err := c.Import(t.Context(), ImportOptions{ID: "local-x", Body: body, Size: -1}, nil)
	require.ErrorContains(t, err, "ELF program")
	_, err = c.Import(t.Context(), ImportOptions{ID: "../x", Body: strings.NewReader("x"), Size: 1}, nil)
	require.Error(t, err)
	_, err = c.Import(t.Context(), ImportOptions{ID: "local-x", Body: bytes.NewReader(archive(t, 1000)[:900]), Size: 900}, nil)
	require.ErrorContains(t, err, "cut off")
}

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestCallerDies: what an import has staged goes away with its caller.
func TestCallerDies(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	c := a.connect()
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	beginning := archive(t, 1000)[:900]
	done := make(chan error, 1)
	go func() {
		_, err := c.Import(ctx, ImportOptions{ID: "local-x", Body: pr, Size: -1}, nil)
		done <- err
	}()
	_, err := pw.Write(beginning)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(a.store.Transfers()) > 0 }, patience, time.Millisecond)
	cancel()
	_ = pw.CloseWithError(errors.New("killed"))
	require.Error(t, <-done)
	require.Eventually(t, func() bool { return len(a.store.Transfers()) == 0 }, patience, time.Millisecond)
	again, err := c.Import(t.Context(), ImportOptions{ID: "local-x", Body: bytes.NewReader(archive(t, 1000)), Size: -1}, nil)
	require.NoError(t, err)
	require.False(t, again.Existing)
	a.nothingStaged()
}

func TestProgressOfADownload(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.glance.block = make(chan struct{})
	seen := make(chan Progress, 100)
	go func() {
		<-seen // the headers
		<-seen
		close(a.glance.block)
	}()
	_, err := a.connect().Import(t.Context(), ImportOptions{ID: glanceID, Size: -1}, func(p Progress) {
		select {
		case seen <- p:
		default: // nobody wants more
		}
	})
	require.NoError(t, err)
}

func TestHold(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	c := a.connect()
	_, err := c.Hold(t.Context(), glanceID)
	require.ErrorIs(t, err, imagesync.ErrNotFound)
	_, err = c.Import(t.Context(), ImportOptions{ID: glanceID, Size: -1}, nil)
	require.NoError(t, err)
	held, err := c.Hold(t.Context(), glanceID)
	require.NoError(t, err)
	require.ErrorIs(t, c.Remove(t.Context(), glanceID), imagesync.ErrInUse)
	held.Release()
	require.Eventually(t, func() bool { return c.Remove(t.Context(), glanceID) == nil }, patience, time.Millisecond)

	_, err = c.Import(t.Context(), ImportOptions{ID: glanceID, Size: -1}, nil)
	require.NoError(t, err)
	held, err = c.Hold(t.Context(), glanceID)
	require.NoError(t, err)
	a.stop()
	<-held.Lost
	held.Release()
	_, err = c.List(t.Context())
	require.ErrorIs(t, err, ErrNoAgent)
}

func TestSocket(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	info, err := os.Stat(a.path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
	_, err = Listen(t.Context(), a.path)
	require.ErrorContains(t, err, "another agent")
	a.stop()
	require.NoFileExists(t, a.path)

	// kill -9 leaves the name.
	address, done, err := shortPath(a.path)
	require.NoError(t, err)
	dead, err := net.Listen("unix", address)
	require.NoError(t, err)
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	done()
	_, err = Connect(t.Context(), a.path)
	require.ErrorIs(t, err, ErrNoAgent)
	a.serve()
	a.connect()

	a.stop()
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 150))
	require.NoError(t, os.Mkdir(deep, 0o700))
	a.path = filepath.Join(deep, SocketName)
	a.serve()
	_, err = a.connect().List(t.Context())
	require.NoError(t, err)
}

// TestOnlyRoot: the mode of the socket is not the only guard.
func TestOnlyRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	a := newAgent(t)
	for dir := filepath.Dir(a.path); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&1 == 0 {
			require.NoError(t, os.Chmod(dir, 0o711))
		}
	}
	require.NoError(t, os.Chmod(a.path, 0o666))
	address, done, err := shortPath(a.path)
	require.NoError(t, err)
	defer done()
	got := make(chan error, 1)
	go func() {
		// The thread is thrown away with its user id when the goroutine ends.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 0); errno != 0 {
			got <- errno
			return
		}
		conn, err := net.Dial("unix", address)
		if err != nil {
			got <- err
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET /images HTTP/1.0\r\n\r\n")
		answer, _ := io.ReadAll(conn)
		got <- errors.New(string(answer))
	}()
	require.ErrorContains(t, <-got, "403 Forbidden")
}

func TestLeftoversOverTheSocket(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	c := a.connect()
	found, err := c.Leftovers(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, []Leftover{}, found)
	a.leftovers = []Leftover{
		{Instance: "u1", Has: []string{"record", "root disk"}, Why: "deleted", Removable: true},
		{Instance: "u2", Has: []string{"id range"}, Why: "nova has it on host other", Error: "x"},
	}
	want := append([]Leftover{}, a.leftovers...)
	found, err = c.Leftovers(t.Context(), true)
	require.NoError(t, err)
	require.Equal(t, want, found)
	found, err = c.Leftovers(t.Context(), false)
	require.NoError(t, err)
	want[0].Removed = true
	require.Equal(t, want, found)
	a.starting = true
	_, err = c.Leftovers(t.Context(), true)
	require.ErrorIs(t, err, ErrStarting)
}
