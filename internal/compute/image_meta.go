package compute

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
)

// imageOf asks Glance for an image that a message names by its id only.
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
	return glanceimage.Image(&found), nil
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

// metadataImage describes the metadata half of a split image, seen with the user's eyes.
func (m *Manager) metadataImage(ctx context.Context, id string) (*imagesync.Part, error) {
	if imagesync.CheckID(id) != nil {
		return nil, exception.ImageUnacceptable(id, "the property "+glanceimage.MetadataProperty+" is not the id of an image")
	}
	found, err := m.Glance.Show(ctx, id)
	if err != nil {
		return nil, imageError(id, err)
	}
	if found.Status != "active" {
		return nil, exception.ImageUnacceptable(id, "as "+glanceimage.MetadataProperty+" of another image it must be active, and is "+found.Status)
	}
	image := glanceimage.Image(&found)
	return glanceimage.Part(m.Glance, &image), nil
}
