package imagesync

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// metadataTar is the first half of a split image.
func metadataTar(t testing.TB, metadata string) []byte {
	t.Helper()
	return makeTar(t, []*tar.Header{
		{Name: "metadata.yaml", Mode: 0o644},
		{Name: "templates/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "templates/hostname.tpl", Mode: 0o644, Size: 4},
	}, map[string]string{"metadata.yaml": metadata})
}

// part is an image of Glance as the other half of one.
func part(id string, data []byte) *Part {
	r := request(id, data)
	return &Part{ID: id, Size: r.Size, HashAlgo: r.HashAlgo, HashValue: r.HashValue, DiskFormat: "raw", ContainerFormat: "bare", Source: r.Source}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	root, meta := gzipped(t, plainTar(t, 1000)), piped(t, metadataTar(t, unifiedMetadata), "xz", "-c")
	s := openStore(t)
	r := request("root", root)
	r.MetadataImage = part("meta", meta)
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	both := sha256.Sum256(append(append([]byte{}, meta...), root...))
	require.Equal(t, hex.EncodeToString(both[:]), img.Fingerprint, "as LXD and Incus name it")
	require.Equal(t, "meta", img.MetadataImage)
	require.Equal(t, "amd64", img.Metadata.Architecture)
	require.Equal(t, "hostname.tpl", img.Metadata.Templates["/etc/hostname"].Template)
	require.Equal(t, []string{"hostname.tpl"}, readDir(t, img.TemplatesDir))
	require.Equal(t, []string{"etc", "large", "sbin"}, readDir(t, img.Path))
	require.FileExists(t, filepath.Join(img.Path, "../metadata.yaml"))

	// The same halves under other ids are stored once, and not fetched again.
	again := request("root-2", root)
	again.Source = &bytesSource{fail: func(int) error { return errors.New("not to be fetched") }}
	again.MetadataImage = part("meta-2", meta)
	again.MetadataImage.Source = again.Source
	other, err := s.Sync(t.Context(), again)
	require.NoError(t, err)
	require.Equal(t, img.Fingerprint, other.Fingerprint)

	// The same root without metadata, or with other metadata, is another image.
	whole, err := s.Sync(t.Context(), request("root-3", root))
	require.NoError(t, err)
	require.NotEqual(t, img.Fingerprint, whole.Fingerprint)
	require.Empty(t, whole.Metadata.Templates)
	fourth := request("root-4", root)
	fourth.MetadataImage = part("meta-4", []byte("architecture: i686\ncreation_date: 7\n"))
	plain, err := s.Sync(t.Context(), fourth)
	require.NoError(t, err, "metadata.yaml by itself will do")
	require.Equal(t, "i686", plain.Metadata.Arch())
	require.Len(t, readDir(t, s.path("images")), 3)
}

// TestSplitChanges: the owner names another metadata image.
func TestSplitChanges(t *testing.T) {
	t.Parallel()
	root := plainTar(t, 1000)
	s := openStore(t)
	first, second := request("root", root), request("root", root)
	first.MetadataImage = part("meta-1", []byte("architecture: x86_64\ncreation_date: 1\n"))
	second.MetadataImage = part("meta-2", []byte("architecture: x86_64\ncreation_date: 2\n"))
	_, err := s.Sync(t.Context(), first)
	require.NoError(t, err)
	require.NoError(t, s.Acquire("root", "instance"))
	_, err = s.Sync(t.Context(), second)
	var bad *UnacceptableError
	require.ErrorAs(t, err, &bad)
	require.Contains(t, bad.Found, "meta-1")
	require.NoError(t, s.Release("root", "instance"))
	img, err := s.Sync(t.Context(), second)
	require.NoError(t, err)
	require.EqualValues(t, 2, img.Metadata.CreationDate)
	require.Len(t, readDir(t, s.path("images")), 1)
}

func TestSplitUnacceptable(t *testing.T) {
	t.Parallel()
	root, meta := plainTar(t, 10), metadataTar(t, unifiedMetadata)
	for name, tc := range map[string]struct {
		root, meta []byte
		change     func(*Request)
		found      string
	}{
		"unified root":       {root: unifiedTar(t, unifiedMetadata), meta: meta, found: "unified image that names a metadata image"},
		"unified metadata":   {root: root, meta: unifiedTar(t, unifiedMetadata), found: "no image metadata"},
		"metadata as root":   {root: meta, meta: meta, found: "no root file system"},
		"root as metadata":   {root: root, meta: root, found: "no image metadata"},
		"disk as metadata":   {root: root, meta: append([]byte("QFI\xfb"), make([]byte, 1000)...), found: "qcow2"},
		"text as metadata":   {root: root, meta: []byte("hello"), found: "no metadata.yaml either"},
		"empty metadata":     {root: root, meta: nil, found: "nothing"},
		"other architecture": {root: root, meta: metadataTar(t, "architecture: arm64\ncreation_date: 1\n"), found: `architecture "arm64"`},
		"property disagrees": {root: root, meta: meta, change: func(r *Request) { r.Arch = "i686" }, found: `architecture "amd64"`},
		"hostile metadata":   {root: root, meta: makeTar(t, []*tar.Header{{Name: "../x"}}, nil), found: "'..'"},
		"damaged metadata":   {root: root, meta: gzipped(t, meta)[:60], found: "damaged gzip"},
		"itself":             {root: root, meta: meta, change: func(r *Request) { r.MetadataImage.ID = r.ID }, found: "id of the image itself"},
		"no id":              {root: root, meta: meta, change: func(r *Request) { r.MetadataImage.ID = "../x" }, found: "impossible id"},
		"qcow2 declared":     {root: root, meta: meta, change: func(r *Request) { r.MetadataImage.DiskFormat = "qcow2" }, found: `disk_format "qcow2"`},
		"docker declared":    {root: root, meta: meta, change: func(r *Request) { r.MetadataImage.ContainerFormat = "docker" }, found: "docker"},
		"large":              {root: root, meta: meta, change: func(r *Request) { r.MetadataImage.Size = 1 << 30 }, found: "1073741824 bytes"},
		"larger than said": {root: root, meta: make([]byte, maxMetadataImage+1000), change: func(r *Request) {
			r.MetadataImage.Size, r.MetadataImage.HashAlgo, r.MetadataImage.HashValue = -1, "", ""
		}, found: "more than 16777216 bytes"},
		"bomb": {root: root, meta: gzipped(t, plainTar(t, maxMetadataImage)), found: "larger than 16777216"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			r := request("x", tc.root)
			r.MetadataImage = part("meta", tc.meta)
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
	t.Run("wrong hash", func(t *testing.T) {
		t.Parallel()
		s := openStore(t)
		r := request("x", root)
		r.MetadataImage = part("meta", meta)
		r.MetadataImage.HashValue = r.HashValue
		_, err := s.Sync(t.Context(), r)
		require.ErrorIs(t, err, ErrHashMismatch)
		require.ErrorContains(t, err, "metadata image meta")
		requireClean(t, s)
	})
}
