package pool

import (
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/loop"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
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

// RootDevices does what storage.Devicer says for a root disk in a file: its loop device, which is its
// own; without a size the disks that the pool lies on.
func RootDevices(p *Pool[storage.Root], instanceID, file string) ([]storage.Device, error) {
	r, err := p.Get(instanceID)
	if err != nil {
		return nil, err
	}
	if r.SizeGB == 0 {
		return mount.Devices(p.Path(instanceID))
	}
	number, err := loop.Number(p.Path(instanceID, file))
	if err == nil && number == "" {
		err = errors.New("the root disk is not mounted")
	}
	if err != nil {
		return nil, fmt.Errorf("find device of %s: %w", instanceID, err)
	}
	return []storage.Device{{Number: number, Own: true}}, nil
}
