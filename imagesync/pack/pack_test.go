package pack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/internal/idattr"
)

var roomy = unpack.Limits{Entries: 100_000, Bytes: 1 << 40, MaxID: 65535}

// node is what of a file must survive.
type node struct {
	Mode     uint32
	UID, GID uint32
	Size     int64
	Mtime    int64
	Link     string
	Content  string
	Xattrs   map[string]string
	SameAs   string // first name of a hard link
}

// snapshot describes a tree; shift is subtracted from the owners.
func snapshot(t testing.TB, root string, shift uint32) map[string]node {
	t.Helper()
	out := map[string]node{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		rel, err := filepath.Rel(root, path)
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		n := node{Mode: st.Mode, UID: st.Uid - shift, GID: st.Gid - shift, Mtime: st.Mtim.Nano()}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			n.Link, err = os.Readlink(path)
			require.NoError(t, err)
		case unix.S_IFREG:
			n.Size = st.Size
			if st.Size < 1<<20 {
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				n.Content = string(data)
			}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG || d.IsDir() {
			n.Xattrs = readXattrs(t, path)
		}
		if st.Nlink > 1 && !d.IsDir() {
			if have, ok := first[st.Ino]; ok {
				n.SameAs = have
			} else {
				first[st.Ino] = rel
			}
		}
		out[rel] = n
		return nil
	})
	require.NoError(t, err)
	return out
}

func readXattrs(t testing.TB, path string) map[string]string {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	require.NoError(t, err)
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		require.NoError(t, err)
		out[name] = string(value[:n])
	}
	return out
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, capabilities")
	}
}

// hasXattrs leaves attributes out where the temporary directory's file system has none.
func hasXattrs(t testing.TB, dir string) bool {
	t.Helper()
	return unix.Setxattr(dir, "user.probe", []byte("x"), 0) == nil && unix.Removexattr(dir, "user.probe") == nil
}

// capV2 is cap_net_raw+ep as the kernel stores it for the initial user namespace.
const capV2 = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func acl(uid uint32) string {
	entry := func(tag, perm uint16, id uint32) string {
		return string([]byte{byte(tag), byte(tag >> 8), byte(perm), byte(perm >> 8), byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
	}
	const none = ^uint32(0)
	return "\x02\x00\x00\x00" + entry(1, 6, none) + entry(2, 4, uid) + entry(4, 4, none) + entry(16, 6, none) + entry(32, 4, none)
}

// build makes a tree with one of everything, owned by base and up.
func build(t testing.TB, base uint32) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	write := func(name, body string, mode os.FileMode) string {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(body), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	write("etc/hostname", "guest\n", 0o644)
	write("etc/empty", "", 0o600)
	ping := write("bin/ping", strings.Repeat("ping", 1000), 0o755)
	su := write("bin/su", "su", 0o755)
	write("long/"+strings.Repeat("d", 90)+"/"+strings.Repeat("e", 90)+"/"+strings.Repeat("f", 200), "long", 0o644)
	write("split/"+strings.Repeat("g", 90)+"/"+strings.Repeat("h", 60), "split", 0o644)
	write("odd/\xff\xfenot-utf8", "bytes", 0o644)
	write("odd/größe\nline", "newline", 0o644)
	write("odd/ =%", "signs", 0o644)
	require.NoError(t, os.Symlink("../etc/hostname", filepath.Join(root, "bin/link")))
	require.NoError(t, os.Symlink(strings.Repeat("x", 300), filepath.Join(root, "bin/longlink")))
	require.NoError(t, os.Link(ping, filepath.Join(root, "bin/ping6")))
	require.NoError(t, os.Link(filepath.Join(root, "bin/link"), filepath.Join(root, "bin/zlink")))
	require.NoError(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o640))
	require.NoError(t, os.Mkdir(filepath.Join(root, "tmp"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky))

	sparse, err := os.Create(filepath.Join(root, "sparse"))
	require.NoError(t, err)
	for _, offset := range []int64{1 << 20, 1 << 27} {
		_, err = sparse.WriteAt(bytes.Repeat([]byte("data"), 2048), offset)
		require.NoError(t, err)
	}
	require.NoError(t, sparse.Truncate(1<<28))
	require.NoError(t, sparse.Close())
	hole := write("hole", "", 0o644)
	require.NoError(t, os.Truncate(hole, 123_457))

	own(t, root, base)
	require.NoError(t, os.Lchown(filepath.Join(root, "etc/hostname"), int(base+1000), int(base+65535)))
	require.NoError(t, unix.Chmod(su, 0o4755))
	if hasXattrs(t, root) {
		require.NoError(t, unix.Setxattr(ping, idattr.Capability, []byte(capV2), 0))
		require.NoError(t, unix.Setxattr(filepath.Join(root, "etc"), "user.note", []byte("a\x00b\n="), 0))
		require.NoError(t, unix.Setxattr(filepath.Join(root, "etc/empty"), idattr.ACLAccess, []byte(acl(base+1000)), 0))
		require.NoError(t, unix.Setxattr(filepath.Join(root, "etc"), idattr.ACLDefault, []byte(acl(base+1000)), 0))
	}
	stamps := map[string]time.Time{
		"etc/empty": time.Unix(-10, 500_000_000), "etc/hostname": time.Unix(1_600_000_000, 123_456_789), "hole": time.Unix(1_500_000_000, 0),
		"etc": time.Unix(1_400_000_000, 1), ".": time.Unix(1_300_000_000, 0),
	}
	for name, stamp := range stamps {
		require.NoError(t, os.Chtimes(filepath.Join(root, name), stamp, stamp))
	}
	return root
}

func own(t testing.TB, root string, base uint32) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, _ error) error {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		require.NoError(t, os.Lchown(path, int(base), int(base)))
		if d.Type()&fs.ModeSymlink == 0 {
			return unix.Chmod(path, st.Mode&0o7777)
		}
		return nil
	}))
}

func write(t testing.TB, root string, o Options) ([]byte, Stats) {
	t.Helper()
	var out bytes.Buffer
	stats, err := Write(t.Context(), &out, root, o)
	require.NoError(t, err)
	return out.Bytes(), stats
}

func decompressed(t testing.TB, c Compression, data []byte) io.Reader {
	t.Helper()
	switch c {
	case Zstd:
		z, err := zstd.NewReader(bytes.NewReader(data))
		require.NoError(t, err)
		t.Cleanup(z.Close)
		return z
	case Gzip:
		z, err := gzip.NewReader(bytes.NewReader(data))
		require.NoError(t, err)
		return z
	case XZ:
		cmd := exec.CommandContext(t.Context(), "xz", "-dc")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		require.NoError(t, err)
		return bytes.NewReader(out)
	default:
		return bytes.NewReader(data)
	}
}

// cycle packs and unpacks.
func cycle(t testing.TB, root string, o Options) string {
	t.Helper()
	data, _ := write(t, root, o)
	tree := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.Mkdir(tree, 0o700))
	_, err := unpack.Tar(t.Context(), decompressed(t, o.Compression, data), tree, roomy)
	require.NoError(t, err)
	return tree
}

func TestEverythingSurvives(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := build(t, 0)
	want := snapshot(t, root, 0)
	for _, c := range []Compression{Zstd, XZ, Gzip, None} {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			got := cycle(t, root, Options{Compression: c})
			if diff := cmp.Diff(want, snapshot(t, got, 0)); diff != "" {
				t.Errorf("tree after packing and unpacking (-want +got):\n%s", diff)
			}
			for _, name := range []string{"sparse", "hole"} {
				var st unix.Stat_t
				require.NoError(t, unix.Stat(filepath.Join(got, name), &st))
				require.LessOrEqual(t, st.Blocks*512, int64(64<<10), "holes of %s stay holes", name)
			}
			sameSparse(t, filepath.Join(root, "sparse"), filepath.Join(got, "sparse"))
		})
	}
}

func sameSparse(t testing.TB, a, b string) {
	t.Helper()
	for _, offset := range []int64{0, 1<<20 - 4096, 1 << 20, 1 << 27, 1<<27 + 8192} {
		var got [2][12288]byte
		for i, name := range []string{a, b} {
			f, err := os.Open(name)
			require.NoError(t, err)
			_, err = f.ReadAt(got[i][:], offset)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
		require.Equal(t, got[0], got[1], "bytes from %d", offset)
	}
}

// TestGNUTarReadsIt: LXD and Incus unpack with GNU tar.
func TestGNUTarReadsIt(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := build(t, 0)
	data, _ := write(t, root, Options{Compression: None})
	tree := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", tree)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	want, got := snapshot(t, root, 0), snapshot(t, tree, 0)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree that GNU tar made (-want +got):\n%s", diff)
	}
	sameSparse(t, filepath.Join(root, "sparse"), filepath.Join(tree, "sparse"))
}

func TestOwnersAreShiftedBack(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const base = 1_000_000
	root := build(t, base)
	stranger := filepath.Join(root, "stranger")
	require.NoError(t, os.WriteFile(stranger, nil, 0o600))
	if hasXattrs(t, root) {
		capV3 := "\x01\x00\x00\x03" + capV2[4:] + "\x40\x42\x0f\x00" // root id 1,000,000
		require.NoError(t, unix.Setxattr(filepath.Join(root, "bin/ping"), idattr.Capability, []byte(capV3), 0))
	}
	data, stats := write(t, root, Options{Compression: None, Shift: Shift{Base: base, Count: 65536}})
	require.Equal(t, 1, stats.Foreign)
	tree := t.TempDir()
	_, err := unpack.Tar(t.Context(), bytes.NewReader(data), tree, roomy)
	require.NoError(t, err)

	want := snapshot(t, root, base)
	n := want["stranger"]
	n.UID, n.GID = Overflow, Overflow
	want["stranger"] = n
	if hasXattrs(t, root) {
		want["bin/ping"].Xattrs[idattr.Capability] = capV2
		want["bin/ping6"].Xattrs[idattr.Capability] = capV2
		want["etc/empty"].Xattrs[idattr.ACLAccess] = acl(1000)
		want["etc"].Xattrs[idattr.ACLDefault] = acl(1000)
	}
	if diff := cmp.Diff(want, snapshot(t, tree, 0)); diff != "" {
		t.Errorf("shifted tree (-want +got):\n%s", diff)
	}
}

func TestSameTreeGivesSameBytes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := build(t, 0)
	for _, c := range []Compression{Zstd, XZ, Gzip, None} {
		first, _ := write(t, root, Options{Compression: c})
		second, _ := write(t, root, Options{Compression: c})
		require.True(t, bytes.Equal(first, second), "two archives of one tree, %s", c)
	}
}

func TestUnifiedImage(t *testing.T) {
	t.Parallel()
	root, templates := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "init"), []byte("init"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(templates, "hostname.tpl"), []byte("{{ container.name }}"), 0o600))
	data, _ := write(t, root, Options{Compression: None, Metadata: []byte("architecture: x86_64\n"), Templates: templates})
	var got []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		body, err := io.ReadAll(r)
		require.NoError(t, err)
		got = append(got, fmt.Sprintf("%s %q", hdr.Name, body))
	}
	want := []string{
		`metadata.yaml "architecture: x86_64\n"`, `templates/ ""`, `templates/hostname.tpl "{{ container.name }}"`, `rootfs/ ""`, `rootfs/init "init"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestNamesRoundTrip(t *testing.T) {
	t.Parallel()
	for length := 1; length <= 300; length++ {
		for _, slash := range []int{0, 1, length / 2, length - 2} {
			name := strings.Repeat("n", length)
			if slash > 0 && slash < length-1 {
				name = name[:slash] + "/" + name[slash+1:]
			}
			for _, suffix := range []string{"", "/"} {
				var out bytes.Buffer
				require.NoError(t, writeOne(&out, header{name: name + suffix, kind: kindDir, mtime: time.Unix(0, 0)}))
				hdr, err := tar.NewReader(&out).Next()
				require.NoError(t, err)
				require.Equal(t, name+suffix, hdr.Name)
			}
		}
	}
}

func TestLargeNumbers(t *testing.T) {
	t.Parallel()
	for _, h := range []header{
		{name: "id", uid: 4_000_000_000, gid: 2_097_152, kind: kindFile},
		{name: "size", size: 1 << 40, kind: kindFile},
		{name: "late", mtime: time.Unix(1<<40, 0), kind: kindFile},
		{name: "early", mtime: time.Unix(-2, 250_000_000), kind: kindFile},
		{name: "link", link: strings.Repeat("é", 80), kind: kindSymlink},
	} {
		if h.mtime.IsZero() {
			h.mtime = time.Unix(1, 0)
		}
		var out bytes.Buffer
		require.NoError(t, writeOne(&out, h))
		hdr, err := tar.NewReader(&out).Next()
		require.NoError(t, err)
		require.Equal(t, int(h.uid), hdr.Uid, h.name)
		require.Equal(t, int(h.gid), hdr.Gid, h.name)
		require.Equal(t, h.size, hdr.Size, h.name)
		require.Equal(t, h.link, hdr.Linkname, h.name)
		require.True(t, h.mtime.Equal(hdr.ModTime), "%s: %s, not %s", h.name, hdr.ModTime, h.mtime)
	}
}

func TestPAXRecordsCountThemselves(t *testing.T) {
	t.Parallel()
	for size := range 1200 {
		value := strings.Repeat("v", size)
		text := string(paxRecords(map[string]string{"key": value}))
		require.Equal(t, fmt.Sprintf("%d key=%s\n", len(text), value), text)
	}
}

// TestLiveTree packs while a guest renames, truncates, replaces by links and removes.
func TestLiveTree(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.Mkdir(secret, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(secret, "key"), []byte("host secret"), 0o600))
	for i := range 20 {
		require.NoError(t, os.MkdirAll(filepath.Join(root, fmt.Sprintf("d%d", i)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, fmt.Sprintf("d%d/key", i)), bytes.Repeat([]byte("x"), 100_000), 0o600))
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			dir := filepath.Join(root, fmt.Sprintf("d%d", i%20))
			_ = os.Truncate(filepath.Join(dir, "key"), int64(i%100_000))
			_ = os.Rename(dir, dir+".away")
			_ = os.Symlink(secret, dir)
			_ = os.Remove(dir)
			_ = os.Rename(dir+".away", dir)
			_ = os.Remove(filepath.Join(dir, "key"))
			_ = unix.Mkfifo(filepath.Join(dir, "key"), 0o600)
			_ = os.Remove(filepath.Join(dir, "key"))
			_ = os.WriteFile(filepath.Join(dir, "key"), bytes.Repeat([]byte("y"), 50_000), 0o600)
		}
	}()
	for range 200 {
		data, _ := write(t, root, Options{Compression: None})
		for r := tar.NewReader(bytes.NewReader(data)); ; {
			_, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err, "the archive stays whole")
			body, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NotContains(t, string(body), "host secret")
		}
	}
	cancel()
	<-ended
}

func TestDeepTreeIsRefused(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := root
	require.NoError(t, os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", maxDepth+2)), 0o755))
	_, err := Write(t.Context(), io.Discard, root, Options{})
	var bad *Error
	require.ErrorAs(t, err, &bad)
}

func TestDevicesAndSocketsAreLeftOut(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := t.TempDir()
	require.NoError(t, unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Mknod(filepath.Join(root, "socket"), unix.S_IFSOCK|0o666, 0))
	_, stats := write(t, root, Options{})
	require.Equal(t, Stats{Entries: 1, Devices: 1, Sockets: 1}, stats)
}

func TestErrorsOfTheWriter(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "zeros"), make([]byte, 8<<20), 0o600))
	for _, c := range []Compression{Zstd, XZ, Gzip, None} {
		_, err := Write(t.Context(), full{}, root, Options{Compression: c})
		require.ErrorIs(t, err, unix.ENOSPC, c.String())
	}
	_, err := Write(t.Context(), io.Discard, root, Options{Compression: XZ, XZ: "/nonexistent/xz"})
	require.ErrorContains(t, err, "install xz-utils")

	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the caller has left")
	cancel(stop)
	for _, c := range []Compression{Zstd, XZ, Gzip, None} {
		_, err := Write(ctx, io.Discard, root, Options{Compression: c})
		require.ErrorIs(t, err, stop, c.String())
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func writeOne(out io.Writer, h header) error {
	w := newBuffered(out)
	if err := (&archive{w: w}).header(h); err != nil {
		return err
	}
	return w.Flush()
}

func BenchmarkWrite(b *testing.B) {
	root := os.Getenv("PACK_TREE")
	if root == "" {
		b.Skip("PACK_TREE names no directory")
	}
	for b.Loop() {
		stats, err := Write(b.Context(), io.Discard, root, Options{})
		require.NoError(b, err)
		b.SetBytes(stats.Bytes)
	}
}
