package compute

import (
	"context"
	"errors"
	"io"

	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
)

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
