package imagesync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/imagesync/unpack"
)

// A split image of LXD and Incus comes in two files: metadata.yaml and templates in one
// archive, the root file system in another or in a squashfs. Glance has no such pair, so
// the image with the root file system is the one that is booted, and names the other.

const (
	// splitDir is where the metadata half is unpacked, in the staging directory.
	splitDir = "metadata"
	// maxMetadataImage bounds the metadata half; published ones have less than a kilobyte.
	maxMetadataImage = 16 << 20
)

// metadataLimits bound what the metadata half unpacks to.
func (s *Store) metadataLimits() unpack.Limits {
	return unpack.Limits{Entries: 1000, Bytes: maxMetadataImage, Reserve: s.o.ReserveBytes, MaxID: maxID}
}

// id of a part; that of none is empty.
func (p *Part) id() string {
	if p == nil {
		return ""
	}
	return p.ID
}

// digest that is wanted of a part; of none it is none.
func (p *Part) digest() string {
	if p == nil {
		return ""
	}
	return p.Digest
}

// check refuses a metadata half that cannot be one, before anything is fetched.
func (p *Part) check(imageID string) error {
	if p == nil {
		return nil
	}
	refuse := func(found string) error {
		return &UnacceptableError{
			ImageID: imageID, Found: fmt.Sprintf("the metadata image %q with %s", p.ID, found),
			Want: "the id of an image with disk_format raw or root-tar and container_format bare, a tar archive of metadata.yaml and templates or metadata.yaml itself",
		}
	}
	switch {
	case checkName("metadata image", p.ID) != nil:
		return refuse("an impossible id")
	case p.ID == imageID:
		return refuse("the id of the image itself")
	case !slices.Contains([]string{"", "raw", "root-tar"}, p.DiskFormat):
		return refuse(fmt.Sprintf("disk_format %q", p.DiskFormat))
	case !slices.Contains([]string{"", "bare"}, p.ContainerFormat):
		return refuse(fmt.Sprintf("container_format %q", p.ContainerFormat))
	case p.Size > maxMetadataImage:
		return refuse(fmt.Sprintf("%d bytes, more than %d", p.Size, maxMetadataImage))
	}
	return nil
}

// is tells whether a stored content has this metadata half, none being one as well.
func (p *Part) is(c content) bool {
	if p == nil {
		return c.MetadataHashes == nil
	}
	return isStrong(p.HashAlgo, p.HashValue) && c.MetadataHashes[p.HashAlgo] == strings.ToLower(p.HashValue)
}

// forgetOtherHalf drops what the store knows of an image whose owner has since named
// another metadata image for it. While instances use what is stored it stays, and the image is refused.
func (s *Store) forgetOtherHalf(r Request) error {
	s.mu.Lock()
	a, ok := s.aliases[r.ID]
	changed := ok && a.MetadataImage != r.MetadataImage.id()
	s.mu.Unlock()
	if !changed {
		return nil
	}
	doomed, err := s.forget(r.ID)
	if errors.Is(err, ErrInUse) {
		return &UnacceptableError{
			ImageID: r.ID, Found: fmt.Sprintf("another metadata image than the %q that instances of this host were made with", a.MetadataImage),
			Want: "the same lxc_metadata_image, or a new image for the new one",
		}
	}
	if err != nil {
		return fmt.Errorf("replace image %s: %w", r.ID, err)
	}
	return removeAll(doomed)
}

// otherHalf is what is known of a metadata half that was unpacked.
type otherHalf struct {
	hashes      map[string]string
	fingerprint hash.Hash // SHA-256 of its bytes, for those of the root file system to follow
}

// importMetadata fetches, verifies and unpacks the metadata half into stage; nil for a whole image.
func (s *Store) importMetadata(ctx context.Context, p *Part, stage string) (*otherHalf, error) {
	if p == nil {
		return nil, nil //nolint:nilnil // a whole image has no other half
	}
	half, err := s.importPart(ctx, p, filepath.Join(stage, splitDir))
	if bad, ok := errors.AsType[*refused](err); ok {
		return nil, &refused{found: fmt.Sprintf("the metadata image %s with %s", p.ID, bad.found), want: bad.want, certain: true}
	}
	if archive, ok := errors.AsType[*unpack.Error](err); ok {
		return nil, &refused{found: fmt.Sprintf("the metadata image %s with an archive that cannot be used: %s", p.ID, archive), want: acceptable, certain: true}
	}
	if err != nil {
		return nil, fmt.Errorf("metadata image %s: %w", p.ID, err)
	}
	return half, nil
}

func (s *Store) importPart(ctx context.Context, p *Part, dir string) (*otherHalf, error) {
	sums, err := newDigest(p.HashAlgo, p.HashValue, p.Checksum)
	if err != nil {
		return nil, err
	}
	sums.add(p.Digest)
	body := &download{ctx: ctx, src: p.Source, size: p.Size, limit: maxMetadataImage, retries: s.o.Retries, delay: s.o.RetryDelay, stall: s.o.StallTimeout}
	defer body.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.TeeReader(body, sums))
	if err != nil {
		return nil, err
	}
	if err := sums.verify(); err != nil {
		return nil, err
	}
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(tree, 0o700); err != nil {
		return nil, fmt.Errorf("make staging directory: %w", err)
	}
	if err := s.unpackMetadata(ctx, data, dir); err != nil {
		return nil, err
	}
	half := &otherHalf{hashes: sums.hex(), fingerprint: sha256.New()}
	_, _ = half.fingerprint.Write(data)
	return half, nil
}

// unpackMetadata unpacks the archive, or takes data as metadata.yaml.
func (s *Store) unpackMetadata(ctx context.Context, data []byte, dir string) error {
	tree := filepath.Join(dir, "tree")
	const want = "a tar archive of metadata.yaml and templates, or metadata.yaml itself"
	switch f, name := sniff(data[:min(len(data), sniffSize)]); f {
	case formatTar, formatGzip, formatXZ, formatZstd, formatBzip2:
		var err error
		if in := bytes.NewReader(data); f == formatTar {
			_, err = s.untar(ctx, in, tree, s.metadataLimits())
		} else {
			_, err = s.unpackCompressed(ctx, f, name, in, tree, s.metadataLimits())
		}
		if err != nil {
			return err
		}
		if !isFile(tree, "metadata.yaml") || isDir(tree, "rootfs") {
			names, err := os.ReadDir(tree)
			if err != nil {
				return fmt.Errorf("look at metadata: %w", err)
			}
			var top []string
			for _, e := range names {
				top = append(top, e.Name())
			}
			return &refused{found: "an archive that is no image metadata: " + describe(top), want: want}
		}
		return nil
	case formatUnknown:
		if _, err := ParseMetadata(bytes.NewReader(data)); err != nil {
			return &refused{found: name + ", which is no metadata.yaml either (" + err.Error() + ")", want: want}
		}
		if err := os.WriteFile(filepath.Join(tree, "metadata.yaml"), data, 0o600); err != nil {
			return fmt.Errorf("write metadata.yaml: %w", err)
		}
		return nil
	default:
		return &refused{found: name, want: want}
	}
}
