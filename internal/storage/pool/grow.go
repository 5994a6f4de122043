package pool

import (
	"fmt"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// GrowRoot does what storage.Backend.Grow says, grow being the back end's part. The record
// comes first: Mount goes by it and completes what was cut off here.
func GrowRoot(p *Pool[storage.Root], instanceID string, sizeGB int, grow func() error) error {
	r, err := p.Get(instanceID)
	switch {
	case err != nil:
	case r.SizeGB == 0:
		err = fmt.Errorf("%w: the disk has no size of its own", storage.ErrUnsupported)
	case sizeGB < r.SizeGB:
		err = fmt.Errorf("%w: the disk has %d GiB already and cannot shrink", storage.ErrUnsupported, r.SizeGB)
	default:
		if sizeGB > r.SizeGB {
			r.SizeGB = sizeGB
			err = p.Set(instanceID, r)
		}
		if err == nil {
			err = grow()
		}
	}
	if err != nil {
		return fmt.Errorf("grow root disk of %s: %w", instanceID, err)
	}
	return nil
}
