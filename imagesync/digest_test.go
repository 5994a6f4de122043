package imagesync

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sha224Of(data []byte) string {
	sum := sha256.Sum224(data)
	return hex.EncodeToString(sum[:])
}

func sha384Of(data []byte) string {
	sum := sha512.Sum384(data)
	return hex.EncodeToString(sum[:])
}

// TestDigest: a hash that nobody wanted when the image came is had by fetching it once more, and is kept.
func TestDigest(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := gzipped(t, plainTar(t, 1000))
	src := &bytesSource{data: data}
	want := func(id, digest string) Image {
		r := request(id, data)
		r.Source, r.Digest = src, digest
		img, err := s.Sync(t.Context(), r)
		require.NoError(t, err)
		return img
	}
	first := want("image", "")
	require.Len(t, first.Hashes, 2, "SHA-256, and what Glance has recorded")
	require.NoError(t, s.Acquire("image", "instance"))
	require.NotEmpty(t, want("image", "sha512").Hashes["sha512"])
	require.Equal(t, 1, src.opens(), "that one was known")

	again := want("image", "sha384")
	require.Equal(t, sha384Of(data), again.Hashes["sha384"])
	require.Equal(t, first.Path, again.Path)
	require.Equal(t, []string{"instance"}, again.Instances)
	require.Equal(t, 2, src.opens())
	want("image", "sha384")
	require.Equal(t, sha384Of(data), want("same-bytes", "sha384").Hashes["sha384"])
	require.Equal(t, 2, src.opens())
	require.Equal(t, sha224Of(data), want("same-bytes", "sha224").Hashes["sha224"])
	require.Equal(t, 3, src.opens())

	require.NoError(t, s.Close())
	s = openStore(t, func(o *Options) { o.Dir = s.o.Dir })
	img, ok, err := s.Get(t.Context(), "image")
	require.NoError(t, err)
	require.True(t, ok)
	require.Len(t, img.Hashes, 4)
	s.work.Wait()
	require.Empty(t, readDir(t, s.path("staging")))

	r := request("other", data)
	r.Digest = "crc32"
	_, err = s.Sync(t.Context(), r)
	require.ErrorContains(t, err, `unknown hash "crc32"`)
}

// TestDigestOfSplitImage: both halves have their own.
func TestDigestOfSplitImage(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	root, meta := gzipped(t, plainTar(t, 1000)), metadataTar(t, unifiedMetadata)
	r := request("root", root)
	r.MetadataImage = part("meta", meta)
	img, err := s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Empty(t, img.MetadataHashes["sha384"])
	r.MetadataImage.Digest, r.Digest = "sha384", "sha224"
	img, err = s.Sync(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, sha384Of(meta), img.MetadataHashes["sha384"])
	require.Equal(t, sha224Of(root), img.Hashes["sha224"])

	// One file with the bytes of both has the same fingerprint, and is something else.
	whole := request("whole", append(append([]byte{}, meta...), root...))
	whole.Digest = "sha384"
	_, err = s.Sync(t.Context(), whole)
	require.Error(t, err, "an archive with other data behind its end")
	img, _, err = s.Get(t.Context(), "root")
	require.NoError(t, err)
	require.Equal(t, sha224Of(root), img.Hashes["sha224"])
	require.Empty(t, img.Hashes["sha384"])
}

func TestLearnKeepsTheHalvesApart(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	have := content{Fingerprint: "f", Hashes: map[string]string{"sha256": "root"}, MetadataHashes: map[string]string{"sha256": "meta"}}
	got, err := s.learn(have, content{Fingerprint: "f", Hashes: map[string]string{"sha256": "f", "sha384": "whole"}})
	require.NoError(t, err)
	require.Equal(t, have, got)
	got, err = s.learn(have, content{Fingerprint: "f", Hashes: map[string]string{"sha256": "roo", "sha384": "x"}, MetadataHashes: map[string]string{"sha256": "metat"}})
	require.NoError(t, err)
	require.Equal(t, have, got)
}

// TestDigestIsNotAnothersImport: an import without the hash goes on, and one with it begins.
func TestDigestIsNotAnothersImport(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := plainTar(t, 1000)
	src := &bytesSource{data: data, block: make(chan struct{})}
	var group sync.WaitGroup
	for _, digest := range []string{"", "sha384", "sha384"} {
		group.Go(func() {
			r := request("image", data)
			r.Source, r.Digest = src, digest
			img, err := s.Sync(t.Context(), r)
			if digest != "" && img.Hashes[digest] == "" {
				err = errors.Join(err, errors.New("no hash"))
			}
			if err != nil {
				t.Errorf("with %q: %v", digest, err)
			}
		})
	}
	require.Eventually(t, func() bool { return src.opens() == 2 && waiting(s) == 3 }, patience, time.Millisecond)
	close(src.block)
	group.Wait()
	require.Len(t, readDir(t, s.path("images")), 1)
}
