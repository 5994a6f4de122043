package imagesync

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// patience is more than anything here takes, on a busy machine too.
const patience = time.Minute

func TestMain(m *testing.M) {
	reqctx.Log(context.Background()).Logger.SetOutput(io.Discard)
	goleak.VerifyTestMain(m)
}

// rootfs is the smallest tree that passes for a root file system.
func rootfs(prefix string) []*tar.Header {
	return []*tar.Header{
		{Name: prefix, Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: prefix + "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: prefix + "etc/hostname", Mode: 0o644, Size: 6},
		{Name: prefix + "sbin/init", Mode: 0o755, Size: 6},
		{Name: prefix + "dev/console", Typeflag: tar.TypeChar, Devmajor: 5, Devminor: 1},
	}
}

func makeTar(t testing.TB, headers []*tar.Header, contents map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := strings.Repeat("x", int(h.Size))
		if text, ok := contents[h.Name]; ok {
			body, h.Size = text, int64(len(text))
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// plainTar is a root file system of about size bytes.
func plainTar(t testing.TB, size int) []byte {
	t.Helper()
	return makeTar(t, append(rootfs("./"), &tar.Header{Name: "./large", Size: int64(size)}), nil)
}

const unifiedMetadata = `architecture: amd64
creation_date: 1700000000
properties: {os: busybox, release: "1.0"}
templates:
  /etc/hostname: {when: [create, copy], template: hostname.tpl}
`

func unifiedTar(t testing.TB, metadata string) []byte {
	t.Helper()
	headers := append(rootfs("rootfs/"),
		&tar.Header{Name: "templates/hostname.tpl", Mode: 0o644, Size: 4},
		&tar.Header{Name: "metadata.yaml", Mode: 0o644}, // last, which streaming must bear
	)
	return makeTar(t, headers, map[string]string{"metadata.yaml": metadata})
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// piped compresses with a program.
func piped(t testing.TB, data []byte, program string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("this test needs %s", program)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	require.NoError(t, err)
	return out
}

// bytesSource serves bytes; what goes wrong is up to the test.
type bytesSource struct {
	data    []byte
	cut     int                      // bytes of one connection; 0: all
	fail    func(open int) error     // of opening the open-th time
	damage  func(open int, p []byte) // of bytes under way
	block   chan struct{}            // reads wait for it or for the context
	mu      sync.Mutex
	offsets []int64
}

func (s *bytesSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.offsets = append(s.offsets, offset)
	n := len(s.offsets)
	s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(n); err != nil {
			return nil, err
		}
	}
	data := bytes.Clone(s.data[min(offset, int64(len(s.data))):])
	if s.damage != nil {
		s.damage(n, data)
	}
	var r io.Reader = bytes.NewReader(data)
	if s.cut > 0 && s.cut < len(data) {
		r = io.MultiReader(bytes.NewReader(data[:s.cut]), errReader{errors.New("connection reset")})
	}
	return io.NopCloser(&blockReader{ctx: ctx, r: r, block: s.block}), nil
}

func (s *bytesSource) opens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.offsets)
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

type blockReader struct {
	ctx   context.Context
	r     io.Reader
	block chan struct{}
}

func (b *blockReader) Read(p []byte) (int, error) {
	if b.block != nil {
		select {
		case <-b.block:
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	return b.r.Read(p)
}

// fileSource serves a file.
type fileSource string

func (f fileSource) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	_, err = file.Seek(offset, io.SeekStart)
	return file, err
}

func openStore(t testing.TB, change ...func(*Options)) *Store {
	t.Helper()
	o := Options{Dir: filepath.Join(t.TempDir(), "images"), RetryDelay: time.Millisecond, ReserveBytes: 1}
	for _, c := range change {
		c(&o)
	}
	s, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// request is for an image as Glance describes it.
func request(id string, data []byte) Request {
	sum := sha512.Sum512(data)
	return Request{
		ID: id, Size: int64(len(data)), HashAlgo: "sha512", HashValue: hex.EncodeToString(sum[:]),
		DiskFormat: "raw", ContainerFormat: "bare", HostArch: "x86_64", Source: &bytesSource{data: data},
	}
}

// requireClean fails when something is left of an import that failed.
func requireClean(t testing.TB, s *Store) {
	t.Helper()
	s.work.Wait()
	for _, dir := range []string{"staging", "images", "aliases"} {
		entries, err := os.ReadDir(s.path(dir))
		require.NoError(t, err)
		require.Empty(t, entries, dir)
	}
}

func readDir(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

var errDenied = deniedError{}

type deniedError struct{}

func (deniedError) Error() string { return "403 forbidden" }

func (deniedError) Permanent() bool { return true }
