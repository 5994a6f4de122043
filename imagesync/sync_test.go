package imagesync

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

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
	for _, dir := range []string{"staging", "images", "aliases"} {
		entries, err := os.ReadDir(s.path(dir))
		require.NoError(t, err)
		require.Empty(t, entries, dir)
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	plain := plainTar(t, 100_000)
	for name, compress := range map[string]func(testing.TB, []byte) []byte{
		"plain": func(_ testing.TB, b []byte) []byte { return b },
		"gzip":  gzipped,
		"zstd":  zstded,
		"xz":    func(t testing.TB, b []byte) []byte { return piped(t, b, "xz", "-c", "-T2") },
		"bzip2": func(t testing.TB, b []byte) []byte { return piped(t, b, "bzip2", "-c") },
		"gzip in two members": func(t testing.TB, b []byte) []byte {
			return append(gzipped(t, b[:5000]), gzipped(t, b[5000:])...)
		},
		"gzip with padding": func(t testing.TB, b []byte) []byte { return gzipped(t, append(b, make([]byte, 100_000)...)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			r := request("image-1", compress(t, plain))
			r.Properties = map[string]string{"os_distro": "busybox"}
			img, err := s.Sync(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, "image-1", img.ID)
			require.Len(t, img.Fingerprint, 64)
			require.Equal(t, r.Size, img.Size)
			require.EqualValues(t, 100_012, img.UnpackedSize)
			require.Empty(t, img.TemplatesDir)
			require.Equal(t, "x86_64", img.Metadata.Architecture)
			require.Equal(t, map[string]string{"image_id": "image-1", "os_distro": "busybox"}, img.Metadata.Properties)
			got, err := os.ReadFile(filepath.Join(img.Path, "etc/hostname"))
			require.NoError(t, err)
			require.Equal(t, "xxxxxx", string(got))
			f, err := os.Open(filepath.Join(img.Path, "../metadata.yaml"))
			require.NoError(t, err)
			defer f.Close()
			written, err := ParseMetadata(f)
			require.NoError(t, err)
			require.Equal(t, img.Metadata.Properties, written.Properties)
			// The record of a content that has reached the disk is replaced in the background.
			require.Eventually(t, func() bool { return len(readDir(t, s.path("staging"))) == 0 }, 10*time.Second, 10*time.Millisecond)
		})
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

func TestUnified(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	img, err := s.Sync(t.Context(), request("unified", gzipped(t, unifiedTar(t, unifiedMetadata))))
	require.NoError(t, err)
	require.Equal(t, "amd64", img.Metadata.Architecture)
	require.EqualValues(t, 1_700_000_000, img.Metadata.CreationDate)
	require.Equal(t, "hostname.tpl", img.Metadata.Templates["/etc/hostname"].Template)
	require.Equal(t, []string{"etc", "sbin"}, readDir(t, img.Path))
	require.Equal(t, []string{"hostname.tpl"}, readDir(t, img.TemplatesDir))
}

func TestUnacceptable(t *testing.T) {
	t.Parallel()
	magic := func(offset int, text string) []byte {
		data := bytes.Repeat([]byte{0x11}, 100_000)
		copy(data[offset:], text)
		return data
	}
	plain := plainTar(t, 10)
	limits := func(o *Options) { o.MaxImageBytes, o.MaxUnpackedBytes, o.MaxEntries = 1<<20, 2<<20, 10 }
	for name, tc := range map[string]struct {
		data   []byte
		change func(*Request)
		found  string
	}{
		"qcow2":                   {data: magic(0, "QFI\xfb\x00\x00\x00\x03"), found: "qcow2"},
		"vmdk":                    {data: magic(0, "KDMV"), found: "VMDK"},
		"iso":                     {data: magic(0x8001, "CD001"), found: "ISO 9660"},
		"disk with partitions":    {data: magic(0x1fe, "\x55\xaa"), found: "neither partitions nor a known file system"},
		"ext4":                    {data: magic(0x438, "\x53\xef"), found: "ext4"},
		"btrfs":                   {data: magic(0x10040, "_BHRfS_M"), found: "Btrfs"},
		"qcow2 in gzip":           {data: gzipped(t, magic(0, "QFI\xfb")), found: "qcow2 disk image compressed with gzip"},
		"zip":                     {data: magic(0, "PK\x03\x04"), found: "zip"},
		"text":                    {data: []byte("hello"), found: "no known format"},
		"zeros":                   {data: make([]byte, 5000), found: "zeros"},
		"declared qcow2":          {data: plain, change: func(r *Request) { r.DiskFormat = "qcow2" }, found: `disk_format "qcow2"`},
		"declared iso":            {data: plain, change: func(r *Request) { r.DiskFormat = "iso" }, found: `disk_format "iso"`},
		"declared docker":         {data: plain, change: func(r *Request) { r.ContainerFormat = "docker" }, found: `container_format "docker"`},
		"other architecture":      {data: plain, change: func(r *Request) { r.Arch = "aarch64" }, found: `hw_architecture "aarch64"`},
		"metadata disagrees":      {data: unifiedTar(t, unifiedMetadata), change: func(r *Request) { r.Arch = "i686" }, found: `architecture "amd64"`},
		"metadata of other CPU":   {data: unifiedTar(t, "architecture: arm64\ncreation_date: 1\n"), found: `architecture "arm64"`},
		"metadata broken":         {data: unifiedTar(t, "architecture: [\n"), found: "metadata.yaml"},
		"metadata hostile":        {data: unifiedTar(t, unifiedMetadata+"  /a/../b: {template: x}\n"), found: "'..'"},
		"template hostile":        {data: unifiedTar(t, unifiedMetadata+"  /a: {template: ../../x}\n"), found: "not a file name"},
		"no root":                 {data: makeTar(t, []*tar.Header{{Name: "debian/etc/passwd"}, {Name: "debian/sbin/init"}}, nil), found: `holds only "debian"`},
		"empty archive":           {data: makeTar(t, nil, nil), found: "zeros"},
		"damaged gzip":            {data: gzipped(t, plain)[:200], found: "gzip"},
		"damaged tar":             {data: plain[:1500], found: "cut off"},
		"hostile":                 {data: makeTar(t, append(rootfs(""), &tar.Header{Name: "../x"}), nil), found: "'..'"},
		"too large":               {data: make([]byte, 2<<20), found: "2097152 bytes"},
		"too large, size unknown": {data: plainTar(t, 2<<20), change: func(r *Request) { r.Size = -1 }, found: "more than 1048576 bytes"},
		"too large unpacked":      {data: gzipped(t, plainTar(t, 3<<20)), found: "larger than 2097152"},
		"bomb behind the archive": {data: gzipped(t, append(bytes.Clone(plain), make([]byte, 3<<20)...)), found: "behind the end"},
		"too many entries":        {data: makeTar(t, append(append(rootfs("./"), rootfs("./a/")...), rootfs("./b/")...), nil), found: "limit of 10 entries"},
		"unknown hash":            {data: plain, change: func(r *Request) { r.HashAlgo, r.HashValue = "whirl", "ab" }, found: "whirl"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, limits)
			r := request("x", tc.data)
			if tc.change != nil {
				tc.change(&r)
			}
			_, err := s.Sync(t.Context(), r)
			var bad *UnacceptableError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, "x", bad.ImageID)
			require.Contains(t, bad.Found, tc.found)
			require.NotEmpty(t, bad.Want)
			requireClean(t, s)
		})
	}
}

func TestXZDamaged(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := piped(t, plainTar(t, 3<<20), "xz", "-0", "-c", "--check=crc32")
	data[len(data)/2] ^= 0xff
	r := request("x", data)
	_, err := s.Sync(t.Context(), r)
	var bad *UnacceptableError
	require.ErrorAs(t, err, &bad)
	require.Contains(t, bad.Found, "damaged xz file")
	require.Contains(t, bad.Found, "corrupt")
	requireClean(t, s)
}

// TestOneDownload: callers of one id, and of two ids with the same bytes, share it.
func TestOneDownload(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := gzipped(t, plainTar(t, 1000))
	src := &bytesSource{data: data, block: make(chan struct{})}
	var group sync.WaitGroup
	for i := range 10 {
		group.Go(func() {
			r := request(fmt.Sprintf("image-%d", i%2), data)
			r.Source = src
			img, err := s.Sync(t.Context(), r)
			if err != nil || img.ID != r.ID {
				t.Errorf("sync %s: %v, %v", r.ID, img.ID, err)
			}
		})
	}
	require.Eventually(t, func() bool { return src.opens() == 1 }, 5*time.Second, time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	close(src.block)
	group.Wait()
	require.Equal(t, 1, src.opens())
	images, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, images, 2)
	require.Equal(t, images[0].Path, images[1].Path)
	require.Len(t, readDir(t, s.path("images")), 1)

	// A third id with only a weak checksum is fetched, and stored once all the same.
	weak := request("image-3", data)
	sum := md5.Sum(data)
	weak.HashAlgo, weak.HashValue, weak.Checksum, weak.Source = "", "", hex.EncodeToString(sum[:]), src
	_, err = s.Sync(t.Context(), weak)
	require.NoError(t, err)
	require.Equal(t, 2, src.opens())
	require.Len(t, readDir(t, s.path("images")), 1)
}

// TestCallersLeave: a caller's end is its own; the last one's end is the download's.
func TestCallersLeave(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 1000)
	src := &bytesSource{data: data, block: make(chan struct{})}
	r := request("image", data)
	r.Source = src
	start := func() (context.CancelFunc, chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Sync(ctx, r)
			done <- err
		}()
		return cancel, done
	}
	waiters := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, f := range s.flights {
			n += f.waiters
		}
		return n
	}
	leaveOne, one := start()
	leaveTwo, two := start()
	require.Eventually(t, func() bool { return waiters() == 2 }, 5*time.Second, time.Millisecond)
	leaveOne()
	require.ErrorIs(t, <-one, context.Canceled)
	require.Equal(t, 1, waiters(), "the download goes on for the other")
	leaveTwo()
	require.ErrorIs(t, <-two, context.Canceled)
	s.work.Wait()
	requireClean(t, s)
	require.Equal(t, 1, src.opens())

	close(src.block)
	_, err := s.Sync(t.Context(), r)
	require.NoError(t, err, "a later caller starts anew")
}

// TestLeaderFails: the first caller's token is no concern of the second.
func TestLeaderFails(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 1000)
	bad, good := request("image", data), request("image", data)
	denied := &denied{release: make(chan struct{})}
	bad.Source = denied
	first := make(chan error, 1)
	go func() {
		_, err := s.Sync(t.Context(), bad)
		first <- err
	}()
	require.Eventually(t, denied.opened.Load, 5*time.Second, time.Millisecond)
	second := make(chan error, 1)
	go func() {
		_, err := s.Sync(t.Context(), good)
		second <- err
	}()
	time.Sleep(20 * time.Millisecond)
	close(denied.release)
	require.ErrorIs(t, <-first, errDenied)
	require.NoError(t, <-second)
}

var errDenied = deniedError{}

type deniedError struct{}

func (deniedError) Error() string   { return "403 forbidden" }
func (deniedError) Permanent() bool { return true }

type denied struct {
	opened  atomic.Bool
	release chan struct{}
}

func (d *denied) Open(context.Context, int64) (io.ReadCloser, error) {
	d.opened.Store(true)
	<-d.release
	return nil, errDenied
}

func TestResume(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 100_000)
	src := &bytesSource{data: data, cut: 40_000}
	r := request("image", data)
	r.Source = src
	_, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []int64{0, 40_000, 80_000}, src.offsets)
}

// TestStall: a connection that says nothing more is given up and made anew.
func TestStall(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(o *Options) { o.StallTimeout = 20 * time.Millisecond })
	data := plainTar(t, 100_000)
	src := &stalling{bytesSource: bytesSource{data: data, cut: 40_000}}
	r := request("image", data)
	r.Source = src
	_, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []int64{0, 40_000, 80_000}, src.offsets)
}

// stalling says nothing more where bytesSource has an error.
type stalling struct{ bytesSource }

func (s *stalling) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	body, err := s.bytesSource.Open(ctx, offset)
	return &stallReader{ctx: ctx, ReadCloser: body}, err
}

type stallReader struct {
	io.ReadCloser
	ctx context.Context
}

func (s *stallReader) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	return n, err
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	data := plainTar(t, 1000)
	down := errors.New("connection refused")
	for name, tc := range map[string]struct {
		err   error
		opens int
	}{
		"transient": {down, 3},
		"permanent": {errDenied, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, func(o *Options) { o.Retries = 3 })
			src := &bytesSource{data: data, fail: func(int) error { return tc.err }}
			r := request("image", data)
			r.Source = src
			_, err := s.Sync(t.Context(), r)
			require.ErrorIs(t, err, tc.err)
			require.Equal(t, tc.opens, src.opens())
			requireClean(t, s)
		})
	}
}

func TestHashMismatch(t *testing.T) {
	t.Parallel()
	data := gzipped(t, plainTar(t, 1000))
	flip := func(times int) func(int, []byte) {
		return func(open int, p []byte) {
			if open <= times {
				p[len(p)/2] ^= 1
			}
		}
	}
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Source = &bytesSource{data: data, damage: flip(1)}
		_, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
	})
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Source = &bytesSource{data: data, damage: flip(99)}
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
		requireClean(t, s)
	})
	t.Run("md5", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.HashAlgo, r.HashValue, r.Checksum = "", "", strings.Repeat("0", 32)
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
	})
	t.Run("longer", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Size -= 10
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
	})
	t.Run("shorter", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Size += 10
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		requireClean(t, s)
	})
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("image", data)
		r.Size, r.HashAlgo, r.HashValue = -1, "", ""
		_, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
	})
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(o *Options) { o.ReserveBytes = 1 << 60 })
	_, err := s.Sync(t.Context(), request("image", plainTar(t, 10)))
	require.ErrorIs(t, err, ErrNoSpace)
	requireClean(t, s)
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(o *Options) { o.Timeout = 20 * time.Millisecond })
	r := request("image", plainTar(t, 10))
	r.Source = &bytesSource{data: []byte("x"), block: make(chan struct{})}
	_, err := s.Sync(t.Context(), r)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "20ms")
	requireClean(t, s)
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, id := range []string{"", "..", "a/b", "a\x00", ".hidden"} {
		_, err := s.Sync(t.Context(), request(id, plainTar(t, 10)))
		require.Error(t, err, id)
		require.Error(t, s.Release(id, "i"))
	}
}
