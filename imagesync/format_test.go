package imagesync

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

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
			s.work.Wait() // the record of a content that has reached the disk is replaced in the background
			require.Empty(t, readDir(t, s.path("staging")))
		})
	}
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
