package compute

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
)

// imageOf asks Glance for an image that a message names by its id only, in the form in which a
// build brings it (nova/objects/image_meta.py:from_image_ref).
func (m *Manager) imageOf(ctx context.Context, ref string) (object.Image, error) {
	if ref == "" {
		return object.Image{}, exception.ImageUnacceptable(ref, "the server has no image")
	}
	found, err := m.Glance.Show(ctx, ref)
	if err != nil {
		return object.Image{}, glanceError(ref, err)
	}
	if found.Status != "active" {
		return object.Image{}, exception.ImageNotActive(ref)
	}
	return object.Image{
		ID: found.ID, Name: found.Name, Status: found.Status, Size: found.Size, Checksum: found.Checksum,
		OSHashAlgo: found.OSHashAlgo, OSHashValue: found.OSHashValue, DiskFormat: found.DiskFormat,
		ContainerFormat: found.ContainerFormat, MinRAM: found.MinRAM, MinDisk: found.MinDisk, Owner: found.Owner,
		Properties: found.Properties,
	}, nil
}

// glanceError gives a failure of the image service its Nova class
// (nova/image/glance.py:_translate_image_exception).
func glanceError(id string, err error) error {
	switch {
	case errors.Is(err, glance.ErrQuotaExceeded):
		return exception.ImageQuotaExceeded(id).Because(err)
	case errors.Is(err, glance.ErrConflict):
		return exception.WithCause("ImageDeleteConflict", err.Error(), map[string]any{"reason": err.Error()}, err)
	case errors.Is(err, glance.ErrBadRequest):
		return exception.WithCause("ImageBadRequest", fmt.Sprintf("Request of image %s got BadRequest response: %s", id, err), map[string]any{"image_id": id, "response": err.Error()}, err)
	}
	return imageError(id, err)
}
