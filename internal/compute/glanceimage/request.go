// Package glanceimage asks the image store for images of Glance, and tells whether a server can be made of one.
package glanceimage

import (
	"context"
	"errors"
	"io"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
)

// MetadataProperty of an image with the root file system of a split image is the id
// of the image with its metadata.
const MetadataProperty = "lxc_metadata_image"

// Image is an image of Glance in the form in which a build brings it (nova/objects/image_meta.py:from_image_ref).
func Image(g *glance.Image) object.Image {
	return object.Image{
		ID: g.ID, Name: g.Name, Status: g.Status, Size: g.Size, Checksum: g.Checksum,
		OSHashAlgo: g.OSHashAlgo, OSHashValue: g.OSHashValue, DiskFormat: g.DiskFormat,
		ContainerFormat: g.ContainerFormat, MinRAM: g.MinRAM, MinDisk: g.MinDisk, Owner: g.Owner,
		Properties: g.Properties,
	}
}

// Request asks the store for an image.
func Request(client *glance.Client, image *object.Image, hostArch string) imagesync.Request {
	r := imagesync.Request{
		ID: image.ID, Size: -1, HashAlgo: image.OSHashAlgo, HashValue: image.OSHashValue, Checksum: image.Checksum,
		DiskFormat: image.DiskFormat, ContainerFormat: image.ContainerFormat, Arch: image.Property("hw_architecture"),
		HostArch: hostArch, Source: source{client, image.ID},
	}
	if image.Size != nil {
		r.Size = *image.Size
	}
	return r
}

// Part asks for an image that is the metadata half of another.
func Part(client *glance.Client, image *object.Image) *imagesync.Part {
	r := Request(client, image, "")
	return &imagesync.Part{
		ID: r.ID, Size: r.Size, HashAlgo: r.HashAlgo, HashValue: r.HashValue, Checksum: r.Checksum,
		DiskFormat: r.DiskFormat, ContainerFormat: r.ContainerFormat, Source: r.Source,
	}
}

// source is an image's data in Glance, for the image store.
type source struct {
	client *glance.Client
	id     string
}

// Open starts the download at an offset. Until the stream is closed the operation
// counts as waiting for Glance: what is unpacked meanwhile takes no longer.
func (s source) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
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
