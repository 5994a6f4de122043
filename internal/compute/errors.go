package compute

import (
	"errors"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/hostshare"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// novaError gives an error the class that Nova's callers expect. What has a class
// already keeps it; what has none and is not in the table stays as it is and
// crosses the RPC as a generic remote error.
func novaError(inst *object.Instance, err error) error {
	if _, ok := exception.ClassOf(err); ok {
		return err
	}
	for _, c := range []struct {
		sentinel error
		make     func() *exception.Error
	}{
		{driver.ErrNotFound, func() *exception.Error { return exception.InstanceNotFound(inst.UUID) }},
		{driver.ErrExists, func() *exception.Error { return exception.InstanceExists(inst.UUID) }},
		{driver.ErrNotRunning, func() *exception.Error { return exception.InstanceNotRunning(inst.UUID) }},
		{driver.ErrNoResources, func() *exception.Error { return exception.ComputeResourcesUnavailable(err.Error()) }},
		{driver.ErrTimeout, func() *exception.Error { return exception.InstancePowerOffFailure(err.Error()) }},
		{driver.ErrUnsupported, func() *exception.Error { return exception.NotImplemented(err.Error()) }},
		{hostshare.ErrUnavailable, func() *exception.Error { return exception.ComputeResourcesUnavailable(err.Error()) }},
		{storage.ErrNoSpace, func() *exception.Error { return exception.ComputeResourcesUnavailable(err.Error()) }},
		{storage.ErrNoPool, func() *exception.Error { return exception.ComputeResourcesUnavailable(err.Error()) }},
		{storage.ErrUnsupported, func() *exception.Error { return exception.InvalidDiskInfo(err.Error()) }},
	} {
		if errors.Is(err, c.sentinel) {
			return c.make().Because(err)
		}
	}
	return err
}

// abortBecause ends a build for good, with the cause as its reason.
func abortBecause(uuid string, cause error) error {
	return exception.BuildAbort(uuid, cause.Error()).Because(cause)
}

// imageError gives a failure to bring an image into the store its Nova class.
func imageError(id string, err error) error {
	var unacceptable *imagesync.UnacceptableError
	switch {
	case errors.As(err, &unacceptable):
		return exception.ImageUnacceptable(id, "found "+unacceptable.Found+"; want "+unacceptable.Want).Because(err)
	case errors.Is(err, imagesync.ErrHashMismatch):
		return exception.ImageUnacceptable(id, err.Error()).Because(err)
	case errors.Is(err, imagesync.ErrNoSpace):
		return exception.ComputeResourcesUnavailable(err.Error()).Because(err)
	case errors.Is(err, glance.ErrNotFound):
		return exception.ImageNotFound(id).Because(err)
	case errors.Is(err, glance.ErrNotAuthorized):
		return exception.ImageNotAuthorized(id).Because(err)
	case errors.Is(err, glance.ErrNoData):
		return exception.ImageUnacceptable(id, "it has no data").Because(err)
	case errors.Is(err, glance.ErrUnreachable):
		return exception.WithCause("GlanceConnectionFailed", err.Error(), map[string]any{"reason": err.Error()}, err)
	}
	return err
}
