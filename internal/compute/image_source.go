package compute

import (
	"context"
	"errors"
	"io"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
)

// metadataImageProperty of an image with the root file system of a split image is the id
// of the image with its metadata.
const metadataImageProperty = "lxc_metadata_image"

// metadataImage describes the metadata half of a split image, seen with the user's eyes.
func (m *Manager) metadataImage(ctx context.Context, id string) (*imagesync.Part, error) {
	if imagesync.CheckID(id) != nil {
		return nil, exception.ImageUnacceptable(id, "the property "+metadataImageProperty+" is not the id of an image")
	}
	image, err := m.Glance.Show(ctx, id)
	if err != nil {
		return nil, imageError(id, err)
	}
	if image.Status != "active" {
		return nil, exception.ImageUnacceptable(id, "as "+metadataImageProperty+" of another image it must be active, and is "+image.Status)
	}
	part := &imagesync.Part{
		ID: id, Size: -1, HashAlgo: image.OSHashAlgo, HashValue: image.OSHashValue, Checksum: image.Checksum,
		DiskFormat: image.DiskFormat, ContainerFormat: image.ContainerFormat, Source: glanceSource{m.Glance, id},
	}
	if image.Size != nil {
		part.Size = *image.Size
	}
	return part, nil
}

// glanceSource is an image's data in Glance, for the image store.
type glanceSource struct {
	client *glance.Client
	id     string
}

// Open starts the download at an offset. Until the stream is closed the operation
// counts as waiting for Glance: what is unpacked meanwhile takes no longer.
func (s glanceSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	end := stopwatch.Wait(ctx, stopwatch.Glance)
	data, _, err := s.client.Open(ctx, s.id, offset)
	if err != nil {
		end()
		for _, final := range []error{glance.ErrNotFound, glance.ErrNotAuthorized, glance.ErrBadRequest, glance.ErrNoData} {
			if errors.Is(err, final) {
				return nil, permanent{err}
			}
		}
		return nil, err
	}
	return timedStream{data, end}, nil
}

// permanent marks an error that another try would meet again.
type permanent struct{ error }

// Permanent tells the image store not to try again.
func (permanent) Permanent() bool { return true }

// Unwrap gives the error itself.
func (p permanent) Unwrap() error { return p.error }

// timedStream is a download whose end is also the end of a wait.
type timedStream struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (s timedStream) Close() error {
	s.end()
	return s.ReadCloser.Close()
}
