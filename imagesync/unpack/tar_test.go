package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/idattr"
)

var roomy = Limits{Entries: 1000, Bytes: 64 << 20, MaxID: 65535}

// entry is a short form of a header.
type entry struct {
	name, link string
	kind       byte
	mode       int64
	body       string
	uid        int
	pax        map[string]string
	major      int64
	minor      int64
}

var stamp = time.Unix(1_600_000_000, 0)

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o755
		}
		hdr := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.body)), Uid: e.uid, Gid: e.uid,
			ModTime: stamp, PAXRecords: e.pax, Devmajor: e.major, Devminor: e.minor,
		}
		if e.pax != nil {
			hdr.Format = tar.FormatPAX
		}
		require.NoError(t, w.WriteHeader(hdr))
		_, err := io.WriteString(w, e.body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// untar unpacks into <temp>/tree; <temp>/outside is there for hostile archives.
func untar(t testing.TB, data []byte, limits Limits) (string, Stats, error) {
	t.Helper()
	base := t.TempDir()
	tree := filepath.Join(base, "tree")
	require.NoError(t, os.Mkdir(tree, 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(base, "outside"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(base, "outside", "secret"), []byte("secret"), 0o600))
	stats, err := Tar(t.Context(), bytes.NewReader(data), tree, limits)
	require.Equal(t, []string{"outside", "tree"}, names(t, base), "nothing is made beside the tree")
	require.Equal(t, []string{"secret"}, names(t, filepath.Join(base, "outside")))
	secret, rerr := os.ReadFile(filepath.Join(base, "outside", "secret"))
	require.NoError(t, rerr)
	require.Equal(t, "secret", string(secret))
	return tree, stats, err
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestTree(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long", 50) + "/" + strings.Repeat("name", 50)
	tree, stats, err := untar(t, archive(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o751},
		entry{name: "./etc/", kind: tar.TypeDir},
		entry{name: "./etc/passwd", mode: 0o644, body: "root\n"},
		entry{name: "/usr/bin/su", mode: 0o4755, body: "su"},
		entry{name: "./etc/link", kind: tar.TypeSymlink, link: "/../../etc/shadow"},
		entry{name: "etc/hard", kind: tar.TypeLink, link: "./etc/passwd"},
		entry{name: "etc/pipe", kind: tar.TypeFifo, mode: 0o620},
		entry{name: long, body: strings.Repeat("x", 3*bufferSize+7)},
		entry{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3},
		entry{name: "dev/sda", kind: tar.TypeBlock, major: 8},
		entry{name: "tmp/", kind: tar.TypeDir, mode: 0o1777},
		entry{name: "empty"},
		entry{name: "etc/", kind: tar.TypeDir, mode: 0o711},
	), roomy)
	require.NoError(t, err)
	require.Equal(t, Stats{Entries: 11, Bytes: 5 + 2 + 3*bufferSize + 7, Devices: 2}, stats)
	for name, mode := range map[string]os.FileMode{
		"":                 os.ModeDir | 0o751,
		"etc":              os.ModeDir | 0o711, // said again later
		"usr":              os.ModeDir | 0o755, // never said
		"tmp":              os.ModeDir | os.ModeSticky | 0o777,
		"etc/passwd":       0o644,
		"usr/bin/su":       os.ModeSetuid | 0o755,
		"etc/link":         os.ModeSymlink | 0o777,
		"etc/pipe":         os.ModeNamedPipe | 0o620,
		"empty":            0o755,
		"etc/hard":         0o644,
		long:               0o755,
		filepath.Dir(long): os.ModeDir | 0o755,
	} {
		info, err := os.Lstat(filepath.Join(tree, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
		if !strings.Contains(name, "usr") && !strings.Contains(name, "long") {
			require.True(t, info.ModTime().Equal(stamp), "%s: %s", name, info.ModTime())
		}
	}
	require.NoDirExists(t, filepath.Join(tree, "dev"))
	target, err := os.Readlink(filepath.Join(tree, "etc/link"))
	require.NoError(t, err)
	require.Equal(t, "/../../etc/shadow", target)
	one, err := os.Stat(filepath.Join(tree, "etc/passwd"))
	require.NoError(t, err)
	two, err := os.Stat(filepath.Join(tree, "etc/hard"))
	require.NoError(t, err)
	require.True(t, os.SameFile(one, two))
}

// TestReplaced: a later entry of the same name wins, as with tar.
func TestReplaced(t *testing.T) {
	t.Parallel()
	tree, _, err := untar(t, archive(t,
		entry{name: "a", body: "old"},
		entry{name: "b", body: "kept"},
		entry{name: "c", kind: tar.TypeLink, link: "b"},
		entry{name: "c", body: "new file, not new content of b"},
		entry{name: "a", body: "new"},
		entry{name: "d", kind: tar.TypeSymlink, link: "../outside"},
		entry{name: "d/", kind: tar.TypeDir},
		entry{name: "d/x", body: "inside"},
		entry{name: "e/", kind: tar.TypeDir},
		entry{name: "e", kind: tar.TypeSymlink, link: "../outside"},
	), roomy)
	require.NoError(t, err)
	for name, want := range map[string]string{"a": "new", "b": "kept", "d/x": "inside"} {
		got, err := os.ReadFile(filepath.Join(tree, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

// TestHostile: none of these may succeed, and none may touch anything outside.
func TestHostile(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("d/", maxDepth+1)
	for name, tc := range map[string]struct {
		entries []entry
		entry   string // named by the error
		reason  string
	}{
		"parent":               {[]entry{{name: "../outside/secret", body: "x"}}, "../outside/secret", "'..'"},
		"parent in the middle": {[]entry{{name: "a/../../outside/secret", body: "x"}}, "a/../../outside/secret", "'..'"},
		"through a link":       {[]entry{{name: "a", kind: tar.TypeSymlink, link: "../outside"}, {name: "a/secret", body: "x"}}, "a/secret", "not a directory"},
		"through an absolute link": {[]entry{
			{name: "a", kind: tar.TypeSymlink, link: "/etc"}, {name: "a/passwd", body: "x"},
		}, "a/passwd", "not a directory"},
		"through two links": {[]entry{
			{name: "a/", kind: tar.TypeDir}, {name: "a/b", kind: tar.TypeSymlink, link: ".."}, {name: "a/b/b", kind: tar.TypeSymlink, link: ".."},
		}, "a/b/b", "not a directory"},
		"directory becomes a link": {[]entry{
			{name: "a/x", body: "x"}, {name: "a", kind: tar.TypeSymlink, link: "../outside"},
		}, "a", "not empty"},
		"link, then directory through it": {[]entry{
			{name: "a", kind: tar.TypeSymlink, link: "../outside"}, {name: "a/b/", kind: tar.TypeDir},
		}, "a/b/", "not a directory"},
		"hard link out by name": {[]entry{{name: "a", kind: tar.TypeLink, link: "../outside/secret"}}, "a", "leaves the archive"},
		"hard link out by a link": {[]entry{
			{name: "l", kind: tar.TypeSymlink, link: "../outside"}, {name: "a", kind: tar.TypeLink, link: "l/secret"},
		}, "a", "not in the archive"},
		"hard link to a host file": {[]entry{{name: "a", kind: tar.TypeLink, link: "/etc/passwd"}}, "a", "not in the archive"},
		"hard link to a directory": {[]entry{{name: "d/", kind: tar.TypeDir}, {name: "a", kind: tar.TypeLink, link: "d"}}, "a", "directory"},
		"hard link to itself":      {[]entry{{name: "a", body: "x"}, {name: "a", kind: tar.TypeLink, link: "a"}}, "a", "itself"},
		"hard link to the root":    {[]entry{{name: "a", kind: tar.TypeLink, link: "."}}, "a", "root"},
		"whiteout":                 {[]entry{{name: "a", kind: tar.TypeChar}}, "a", "whiteout"},
		"opaque":                   {[]entry{{name: "a/", kind: tar.TypeDir, pax: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}}}, "a/", "overlayfs"},
		"redirect":                 {[]entry{{name: "a", pax: map[string]string{"SCHILY.xattr.user.overlay.redirect": "/etc"}}}, "a", "overlayfs"},
		"root is a file":           {[]entry{{name: ".", body: "x"}}, ".", "root"},
		"root is a link":           {[]entry{{name: ".", kind: tar.TypeSymlink, link: "/"}}, ".", "root"},
		"owner":                    {[]entry{{name: "a", uid: 65536}}, "a", "65536"},
		"deep":                     {[]entry{{name: deep, kind: tar.TypeDir}}, deep, "deep"},
		"long component":           {[]entry{{name: strings.Repeat("n", 256)}}, strings.Repeat("n", 256), "256 bytes"},
		"unknown type":             {[]entry{{name: "a", kind: 'Z'}}, "a", "unknown type"},
		"bytes":                    {[]entry{{name: "a", body: strings.Repeat("x", 1<<20)}, {name: "b", body: strings.Repeat("x", 1<<20)}}, "b", "larger than 1500000"},
		"entries":                  {[]entry{{name: "1"}, {name: "2"}, {name: "3"}, {name: "4"}}, "4", "limit of 3"},
		"file as directory":        {[]entry{{name: "a", body: "x"}, {name: "a/b", body: "x"}}, "a/b", "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := untar(t, archive(t, tc.entries...), Limits{Entries: 3, Bytes: 1_500_000, MaxID: 65535})
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Equal(t, tc.entry, bad.Entry)
			require.ErrorContains(t, err, tc.reason)
			require.Less(t, len(err.Error()), 500)
		})
	}
}

func TestNULInName(t *testing.T) {
	t.Parallel()
	_, err := split("a\x00b")
	require.ErrorContains(t, err, "NUL")
}

// TestSparse: what is a hole in the archive is a hole on disk.
func TestSparse(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	tree, err := newTree(base, Limits{Entries: 1, Bytes: 1 << 30})
	require.NoError(t, err)
	const size = 40 << 20
	content := io.MultiReader(io.LimitReader(zeros{}, size-1), strings.NewReader("x"))
	require.NoError(t, tree.file(t.Context(), "hole", []string{"hole"}, attrs{mode: 0o600, mtime: stamp}, size, content, true))
	require.NoError(t, tree.finish())
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(base, "hole"), &st))
	require.EqualValues(t, size, st.Size)
	require.LessOrEqual(t, st.Blocks, int64(16))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestDamage(t *testing.T) {
	t.Parallel()
	whole := archive(t, entry{name: "a", body: strings.Repeat("x", 10_000)}, entry{name: "b", body: "x"})
	for name, data := range map[string][]byte{
		"cut in content": whole[:5000],
		"cut in header":  whole[:512+10_240+100],
		"wrong checksum": append(append(bytes.Clone(whole[:10_752]), 'X'), whole[10_753:]...),
	} {
		_, _, err := untar(t, data, roomy)
		var bad *Error
		require.ErrorAs(t, err, &bad, name)
	}
	_, stats, err := untar(t, nil, roomy)
	require.NoError(t, err)
	require.Zero(t, stats.Entries)
}

// TestReaderError: a failing disk or network is not the archive's fault.
func TestReaderError(t *testing.T) {
	t.Parallel()
	whole := archive(t, entry{name: "a", body: strings.Repeat("x", 10_000)})
	broken := errors.New("cable out")
	_, err := Tar(t.Context(), io.MultiReader(bytes.NewReader(whole[:5000]), failing{broken}), t.TempDir(), roomy)
	require.ErrorIs(t, err, broken)
	var bad *Error
	require.NotErrorAs(t, err, &bad)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Tar(ctx, bytes.NewReader(archive(t, entry{name: "a"})), t.TempDir(), roomy)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, `"a"`)
}

func TestReserve(t *testing.T) {
	t.Parallel()
	limits := roomy
	limits.Bytes, limits.Reserve = 1<<30, 1<<62
	body := strings.Repeat("x", spaceInterval)
	_, _, err := untar(t, archive(t, entry{name: "a", body: body}), limits)
	require.ErrorIs(t, err, unix.ENOSPC)
}

func TestUserXattrs(t *testing.T) {
	t.Parallel()
	tree, stats, err := untar(t, archive(t,
		entry{name: "a", body: "x", pax: map[string]string{
			"SCHILY.xattr.user.key": "value", "SCHILY.xattr.security.selinux": "label", "SCHILY.xattr.trusted.other": "x",
			"SCHILY.acl.access": "user::rw-,user:lisa:r--,mask::r--,group::r--,other::---",
		}},
		entry{name: "d/", kind: tar.TypeDir, pax: map[string]string{"SCHILY.acl.default": "user::rwx\ngroup::r-x\nuser:lisa:rwx:1000\nmask::rwx\nother::---\n"}},
		entry{name: "d/inner", body: "x", mode: 0o644},
		entry{name: "other", body: "x"},
		entry{name: "d/later", body: "x", mode: 0o644},
	), roomy)
	require.NoError(t, err)
	require.Equal(t, 3, stats.SkippedXattrs)
	value := make([]byte, 100)
	n, err := unix.Getxattr(filepath.Join(tree, "a"), "user.key", value)
	require.NoError(t, err)
	require.Equal(t, "value", string(value[:n]))
	n, err = unix.Getxattr(filepath.Join(tree, "d"), idattr.ACLDefault, value)
	require.NoError(t, err)
	require.Equal(t, 4+5*8, n)
	for _, name := range []string{"d/inner", "d/later"} {
		_, err = unix.Getxattr(filepath.Join(tree, name), idattr.ACLAccess, value)
		require.ErrorIs(t, err, unix.ENODATA, "%s inherits nothing", name)
		info, err := os.Stat(filepath.Join(tree, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o644), info.Mode())
	}
}

func TestParseACL(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"user::rwx,group::r-x,other::---":           true,
		"u::rwx,g::r-x,o::---,m::rwx,u:1000:r":      true,
		"user::rw- # comment\nuser:lisa:r--:1001\n": true,
		"":                     false,
		"user:lisa:r":          false,
		"user::rwz":            false,
		"what::rwx":            false,
		"user":                 false,
		"user:x:r:99999999999": false,
	} {
		_, got := parseACL(text)
		require.Equal(t, ok, got, text)
	}
}

// FuzzTar: whatever the bytes, nothing outside is touched and no descriptor is left.
func FuzzTar(f *testing.F) {
	f.Add(archive(f, entry{name: "a/", kind: tar.TypeDir}, entry{name: "a/b", body: "x"}, entry{name: "c", kind: tar.TypeSymlink, link: "../outside"}, entry{name: "c/d", body: "x"}))
	f.Add(archive(f, entry{name: "a", body: "x"}, entry{name: "b", kind: tar.TypeLink, link: "a"}, entry{name: "../x"}))
	f.Add(archive(f, entry{name: "a", body: "x", pax: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.acl.access": "user::rwx"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := len(names(t, "/proc/self/fd"))
		_, stats, err := untar(t, data, Limits{Entries: 100, Bytes: 1 << 20, MaxID: 65535})
		if err == nil {
			require.LessOrEqual(t, stats.Entries, 100)
			require.LessOrEqual(t, stats.Bytes, int64(1<<20))
		}
		require.Len(t, names(t, "/proc/self/fd"), before)
	})
}

func FuzzParseACL(f *testing.F) {
	f.Add("user::rwx,user:lisa:r-x:1000")
	f.Fuzz(func(t *testing.T, text string) {
		if acl, ok := parseACL(text); ok {
			require.Equal(t, 4, len(acl)%8)
		}
	})
}

// BenchmarkSmallFiles writes 10,000 files of 1 KiB in 100 directories, through
// this package and, for comparison, through os.Root.
func BenchmarkSmallFiles(b *testing.B) {
	var entries []entry
	for i := range 100 {
		dir := "usr/share/doc/" + strings.Repeat(string(rune('a'+i%26)), i/26+1)
		for j := range 100 {
			entries = append(entries, entry{name: dir + "/" + strings.Repeat("f", j+1), body: strings.Repeat("x", 1024), mode: 0o644})
		}
	}
	data := archive(b, entries...)
	limits := Limits{Entries: 1 << 20, Bytes: 1 << 40, MaxID: 65535}
	b.Run("unpack", func(b *testing.B) {
		for b.Loop() {
			_, err := Tar(b.Context(), bytes.NewReader(data), b.TempDir(), limits)
			require.NoError(b, err)
		}
	})
	b.Run("os.Root", func(b *testing.B) {
		for b.Loop() {
			require.NoError(b, untarRoot(bytes.NewReader(data), b.TempDir()))
		}
	})
}

func untarRoot(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := root.MkdirAll(filepath.Dir(hdr.Name), 0o755); err != nil {
			return err
		}
		file, err := root.OpenFile(hdr.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, tr)
		err = errors.Join(err, file.Chown(os.Getuid(), os.Getgid()), file.Chmod(hdr.FileInfo().Mode()), file.Close(), root.Chtimes(hdr.Name, hdr.ModTime, hdr.ModTime))
		if err != nil {
			return err
		}
	}
}
