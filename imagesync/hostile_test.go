package imagesync

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// compressions are all that an archive may come in.
var compressions = map[string]func(testing.TB, []byte) []byte{
	"plain": func(_ testing.TB, b []byte) []byte { return b },
	"gzip":  gzipped,
	"zstd":  zstded,
	"xz":    func(t testing.TB, b []byte) []byte { return piped(t, b, "xz", "-1", "-c", "-T1") },
	"bzip2": func(t testing.TB, b []byte) []byte { return piped(t, b, "bzip2", "-1", "-c") },
}

// rawHeader is a header block as no library writes it.
func rawHeader(name string, kind byte, size string) []byte {
	block := make([]byte, 512)
	copy(block, name)
	copy(block[100:], "0000755\x000000000\x000000000\x00")
	copy(block[124:], size)
	copy(block[136:], "14000000000\x00")
	block[156] = kind
	copy(block[257:], "ustar\x0000")
	copy(block[148:], "        ")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return block
}

// octal is a size field.
func octal(n int64) string { return fmt.Sprintf("%011o\x00", n) }

// padded fills the last block.
func padded(data []byte) []byte { return append(data, make([]byte, (512-len(data)%512)%512)...) }

// pax is an extended header with one record, whatever is in it.
func pax(key, value string) []byte {
	n := len(key) + len(value) + 3
	var record string
	for size := n + 1; ; size++ {
		if record = fmt.Sprintf("%d %s=%s\n", size, key, value); len(record) == size {
			break
		}
	}
	return append(rawHeader("pax", 'x', octal(int64(len(record)))), padded([]byte(record))...)
}

// base256 is a size that octal digits cannot tell.
func base256(n uint64) string {
	field := make([]byte, 12)
	binary.BigEndian.PutUint64(field[4:], n)
	field[0] |= 0x80
	return string(field)
}

// hostileArchive is an archive that must be refused.
type hostileArchive struct {
	headers []*tar.Header // after those of a good root file system
	raw     []byte        // after those
	found   string        // part of the refusal: the entry's name and what is wrong with it
}

// hostileArchives make the corpus in testdata/hostile; TestHostileArchives imports each in every compression. Disks have package disktest.
func hostileArchives() map[string]hostileArchive {
	link := func(name, target string) *tar.Header {
		return &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, target string) *tar.Header {
		return &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}
	}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Mode: 0o644, Size: 4} }
	xattr := func(name, key string) *tar.Header {
		return &tar.Header{Name: name, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr." + key: "y"}}
	}
	return map[string]hostileArchive{
		"name that leaves":              {headers: []*tar.Header{file("../outside/secret")}, found: `"../outside/secret" has '..'`},
		"absolute name that leaves":     {headers: []*tar.Header{file("/../../outside/secret")}, found: "has '..'"},
		"file through a link":           {headers: []*tar.Header{link("l", "../../../outside"), file("l/secret")}, found: `"l/secret" passes through "l"`},
		"file through an absolute link": {headers: []*tar.Header{link("l", "/etc"), file("l/passwd")}, found: `"l/passwd" passes through "l"`},
		"directory through a link":      {headers: []*tar.Header{link("l", "/tmp"), {Name: "l/d/", Typeflag: tar.TypeDir}}, found: "passes through"},
		"file through a link of links":  {headers: []*tar.Header{link("a", "b"), link("b", "../../outside"), file("a/secret")}, found: "passes through"},
		"hard link that leaves":         {headers: []*tar.Header{hard("h", "../outside/secret")}, found: `"h" is a hard link to "../outside/secret"`},
		"hard link to the host":         {headers: []*tar.Header{hard("h", "/etc/shadow")}, found: `"h" is a hard link to what is not in the archive`},
		"hard link through a link":      {headers: []*tar.Header{link("l", "/etc"), hard("h", "l/shadow")}, found: "not in the archive"},
		"hard link, then its content":   {headers: []*tar.Header{hard("h", "/outside/secret"), file("h")}, found: "not in the archive"},
		"whiteout":                      {headers: []*tar.Header{{Name: "etc/gone", Typeflag: tar.TypeChar}}, found: `"etc/gone" is an overlayfs whiteout`},
		"opaque directory":              {headers: []*tar.Header{xattr("etc/o", "trusted.overlay.opaque")}, found: `"etc/o" has the overlayfs attribute`},
		"redirected directory":          {headers: []*tar.Header{xattr("etc/r", "user.overlay.redirect")}, found: "overlayfs attribute"},
		"foreign owner":                 {headers: []*tar.Header{{Name: "mine", Uid: 70_000}}, found: `"mine" belongs to 70000:0`},
		"name of 4 KB":                  {headers: []*tar.Header{file(strings.Repeat("n", 4096))}, found: "has a name of 4096 bytes"},
		"path of 64 KB":                 {headers: []*tar.Header{file(strings.Repeat("d/", 32<<10) + "f")}, found: "directories deep"},
		"NUL in a name":                 {raw: append(pax("path", "etc/pass\x00wd"), rawHeader("x", '0', octal(0))...), found: "damaged header after"},
		"NUL in a link":                 {raw: append(pax("linkpath", "etc/pass\x00wd"), rawHeader("x", '2', octal(0))...), found: "damaged header after"},
		"negative size":                 {raw: rawHeader("n", '0', "-0000000001\x00"), found: "damaged header"},
		"size beyond everything":        {raw: rawHeader("huge", '0', base256(1<<62)), found: `"huge" makes the content larger than`},
		"size of a directory":           {raw: rawHeader("sparse", '0', octal(64<<30)), found: `"sparse" makes the content larger than`},
		"sparse bomb, new":              {raw: append(append(pax("GNU.sparse.size", "9000000000000000000"), pax("GNU.sparse.numblocks", "0")...), rawHeader("bomb", '0', octal(0))...), found: ""},
		"sparse bomb, old":              {raw: oldSparse("bomb", 1<<60), found: `"bomb" makes the content larger than`},
		"sparse map without end":        {raw: endlessSparse(), found: "after"},
		"extended header of 8 EiB":      {raw: rawHeader("pax", 'x', base256(1<<62)), found: "after"},
		"long name of 2 MiB":            {raw: append(rawHeader("././@LongLink", 'L', octal(2<<20)), make([]byte, 2<<20)...), found: "after"},
		"cut off in a header":           {raw: rawHeader("x", '0', octal(0))[:300], found: "cut off after"},
		"cut off in a file":             {raw: append(rawHeader("x", '0', octal(5000)), make([]byte, 1000)...), found: `"x" is cut off`},
		"no end mark":                   {raw: append(rawHeader("x", '0', octal(3)), padded([]byte("abc"))...), found: "no end mark"},
		"another archive behind":        {raw: append(make([]byte, 1024), rawHeader("x", '0', octal(0))...), found: "other data behind its end"},
		"garbage behind":                {raw: append(make([]byte, 1024), "garbage"...), found: "other data behind its end"},
	}
}

// archive is the whole file.
func (h hostileArchive) archive(t testing.TB) []byte {
	t.Helper()
	data := makeTar(t, append(rootfs("./"), h.headers...), nil)
	if h.raw != nil {
		end := bytes.LastIndexFunc(data, func(r rune) bool { return r != 0 })
		data = append(data[:(end+511)/512*512], h.raw...)
	}
	return data
}

// oldSparse is an entry in GNU's old form, of so many bytes and none of them there.
func oldSparse(name string, size uint64) []byte {
	block := rawHeader(name, 'S', octal(0))
	copy(block[257:], "ustar  \x00")
	copy(block[386:], strings.Repeat("0", 11)+"\x00"+strings.Repeat("0", 11)+"\x00")
	copy(block[483:], base256(size))
	return resummed(block)
}

func resummed(block []byte) []byte {
	copy(block[148:], "        ")
	sum := 0
	for _, c := range block[:512] {
		sum += int(c)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return block
}

// endlessSparse has a map that goes on and on.
func endlessSparse() []byte {
	block := oldSparse("bomb", 1<<40)
	copy(block[386:], strings.Repeat("00000000001\x00", 8))
	block[482] = 1
	resummed(block)
	extension := []byte(strings.Repeat("00000000001\x00", 42) + "\x01")
	return append(block, bytes.Repeat(padded(extension), 60_000)...)
}

// TestHostileArchives: refused in every compression, with the entry's name, and nothing is touched outside.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	corpus := functest.NewCorpus(t, "hostile")
	for name, hostile := range hostileArchives() {
		data := corpus.Stored(name, hostile.archive(t))
		for compression, compress := range compressions {
			t.Run(name+"/"+compression, func(t *testing.T) {
				t.Parallel()
				base := t.TempDir()
				require.NoError(t, os.Mkdir(filepath.Join(base, "outside"), 0o755))
				secret := filepath.Join(base, "outside", "secret")
				require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o644))
				s := openStore(t, func(o *Options) {
					o.Dir, o.MaxUnpackedBytes = filepath.Join(base, "images"), 64<<20
				})
				_, err := s.Sync(t.Context(), request("x", compress(t, data)))
				var bad *UnacceptableError
				require.ErrorAs(t, err, &bad)
				require.Contains(t, bad.Found, hostile.found)
				require.Less(t, len(bad.Found), 700)
				requireClean(t, s)
				got, err := os.ReadFile(secret)
				require.NoError(t, err)
				require.Equal(t, "secret", string(got))
				require.Equal(t, []string{"images", "outside"}, readDir(t, base))
			})
		}
	}
}

// TestOddArchives: strange, but what they say can be done.
func TestOddArchives(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(strings.Repeat("d", 30)+"/", 130) // 4 KB of path
	s := openStore(t)
	data := makeTar(t, append(rootfs("./"),
		&tar.Header{Name: "etc/new\nline", Mode: 0o644},
		&tar.Header{Name: "etc/\xff\xfe", Mode: 0o644},
		&tar.Header{Name: deep + "f", Mode: 0o644},
		&tar.Header{Name: "sbin/su", Mode: 0o6755},
		&tar.Header{Name: "etc/alone", Linkname: "../../../../etc/shadow", Typeflag: tar.TypeSymlink},
		&tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1},
		&tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8},
		&tar.Header{Name: strings.Repeat("e", 255), Mode: 0o644},
	), nil)
	img, err := s.Sync(t.Context(), request("x", data))
	require.NoError(t, err)
	for _, name := range []string{"etc/new\nline", "etc/\xff\xfe", strings.Repeat("e", 255)} {
		require.FileExists(t, filepath.Join(img.Path, name))
	}
	root, err := os.OpenRoot(img.Path)
	require.NoError(t, err)
	defer root.Close()
	_, err = root.Stat(deep + "f")
	require.NoError(t, err)
	info, err := root.Lstat("sbin/su")
	require.NoError(t, err)
	require.Equal(t, os.ModeSetuid|os.ModeSetgid|0o755, info.Mode())
	target, err := root.Readlink("etc/alone")
	require.NoError(t, err)
	require.Equal(t, "../../../../etc/shadow", target, "data, and never followed")
	require.NoDirExists(t, filepath.Join(img.Path, "dev"), "device nodes are left out")
	store, err := os.Stat(s.o.Dir)
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o700, store.Mode(), "nobody of the host gets at a setuid program")
}

// TestBombs: little to download and much to unpack is refused early, in little memory.
func TestBombs(t *testing.T) {
	t.Parallel()
	const limit = 8 << 20
	size := 32 << 20
	archive := append(makeTar(t, rootfs("./"), nil), make([]byte, size)...) // zeros behind the end
	inside := makeTar(t, append(rootfs("./"), &tar.Header{Name: "./zeros", Size: int64(size)}), map[string]string{"./zeros": string(make([]byte, size))})
	for compression, compress := range compressions {
		for kind, data := range map[string][]byte{"behind the end": archive, "larger than": inside} {
			t.Run(compression+"/"+kind, func(t *testing.T) {
				t.Parallel()
				s := openStore(t, func(o *Options) { o.MaxUnpackedBytes = limit })
				r := request("x", compress(t, data))
				if compression != "plain" {
					require.Less(t, len(r.Source.(*bytesSource).data), size/90)
				}
				_, err := s.Sync(t.Context(), r)
				var bad *UnacceptableError
				require.ErrorAs(t, err, &bad)
				require.Contains(t, bad.Found, kind)
				requireClean(t, s)
			})
		}
	}
	t.Run("archive in an archive", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		_, err := s.Sync(t.Context(), request("x", gzipped(t, gzipped(t, plainTar(t, 10)))))
		var bad *UnacceptableError
		require.ErrorAs(t, err, &bad)
		require.Contains(t, bad.Found, "gzip compressed with gzip")
	})
}

// TestLargeWindows: a stream may not ask for as much memory as it likes.
func TestLargeWindows(t *testing.T) {
	t.Parallel()
	var large bytes.Buffer
	w, err := zstd.NewWriter(&large, zstd.WithWindowSize(zstd.MaxWindowSize), zstd.WithEncoderLevel(zstd.SpeedFastest))
	require.NoError(t, err)
	_, err = w.Write(plainTar(t, 3<<20))
	require.NoError(t, err)
	require.NoError(t, w.Flush()) // a frame whose size was known would need no window
	require.NoError(t, w.Close())
	for name, tc := range map[string]struct {
		data  []byte
		found string
	}{
		"zstd": {large.Bytes(), "zstd"},
		"xz":   {piped(t, plainTar(t, 1000), "xz", "-c", "--lzma2=dict=1GiB"), "emory usage limit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			_, err := s.Sync(t.Context(), request("x", tc.data))
			var bad *UnacceptableError
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Found, tc.found)
			requireClean(t, s)
		})
	}
}

// TestDamagedStreams: cut off anywhere, or with anything behind, no stream is taken for a whole one.
func TestDamagedStreams(t *testing.T) {
	t.Parallel()
	archive := plainTar(t, 300_000)
	for compression, compress := range compressions {
		whole := compress(t, archive)
		damaged := map[string][]byte{}
		for i := range 12 {
			cut := len(whole) * (i + 1) / 13
			damaged[fmt.Sprintf("cut at %d", cut)] = whole[:cut]
		}
		damaged["without its last byte"] = whole[:len(whole)-1]
		damaged["garbage behind"] = append(bytes.Clone(whole), "garbage"...)
		damaged["another stream's beginning behind"] = append(bytes.Clone(whole), whole[:40]...)
		for name, data := range damaged {
			if compression == "plain" && name == "without its last byte" {
				continue // a byte of padding
			}
			t.Run(compression+"/"+name, func(t *testing.T) {
				t.Parallel()
				s := openStore(t)
				_, err := s.Sync(t.Context(), request("x", data))
				var bad *UnacceptableError
				require.ErrorAs(t, err, &bad, "%d bytes of %d", len(data), len(whole))
				requireClean(t, s)
			})
		}
	}
}

// manyEntries is an archive with a root file system and count device nodes more, made as it is read.
type manyEntries struct {
	tb    testing.TB
	count int
}

// Open implements Source.
func (m manyEntries) Open(context.Context, int64) (io.ReadCloser, error) {
	entry := rawHeader("dev/null", '3', octal(0))
	copy(entry[329:], "0000001\x000000003\x00")
	resummed(entry)
	root := makeTar(m.tb, rootfs("./"), nil)
	block := bytes.Repeat(entry, 1000)
	readers := []io.Reader{bytes.NewReader(root[:len(root)-1024])}
	for range m.count / 1000 {
		readers = append(readers, bytes.NewReader(block))
	}
	return io.NopCloser(io.MultiReader(append(readers, bytes.NewReader(make([]byte, 1024)))...)), nil
}

// TestManyEntries: an archive is read as a stream, however many entries it has, up to the limit.
func TestManyEntries(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	img, err := s.Sync(t.Context(), Request{ID: "many", Source: manyEntries{t, 100_000}})
	require.NoError(t, err)
	require.Equal(t, []string{"etc", "sbin"}, readDir(t, img.Path))

	s = openStore(t, func(o *Options) { o.MaxEntries = 50_000 })
	_, err = s.Sync(t.Context(), Request{ID: "many", Source: manyEntries{t, 100_000}})
	var bad *UnacceptableError
	require.ErrorAs(t, err, &bad)
	require.Contains(t, bad.Found, `"dev/null" is one more than the limit of 50000 entries`)
}

// FuzzImport: whatever the bytes, an import ends, and leaves nothing or an image.
func FuzzImport(f *testing.F) {
	f.Add(plainTar(f, 10))
	f.Add(gzipped(f, unifiedTar(f, unifiedMetadata)))
	f.Add(zstded(f, plainTar(f, 10)))
	f.Add([]byte("BZh91AY&SY"))
	for _, h := range hostileArchives() {
		if len(h.raw) < 1<<16 {
			f.Add(h.archive(f))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.HasPrefix(data, []byte("\xfd7zXZ")) || bytes.HasPrefix(data, []byte("hsqs")) {
			return // a process for each
		}
		s := openStore(t, func(o *Options) { o.MaxUnpackedBytes, o.MaxEntries, o.MaxImageBytes = 4<<20, 100, 1<<20 })
		if _, err := s.Sync(t.Context(), request("x", data)); err != nil {
			requireClean(t, s)
		}
	})
}
