package pool

import (
	"fmt"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// ShrinkRoot makes a root disk smaller by shrink. The record follows: a disk that is smaller than its
// record grows at the next mount, so that a crash in between leaves it as it was.
func ShrinkRoot(p *Pool[storage.Root], instanceID string, sizeGB int, shrink func() error) error {
	r, err := p.Get(instanceID)
	if err != nil {
		return fmt.Errorf("shrink root disk: %w", err)
	}
	if r.SizeGB == 0 || sizeGB <= 0 || r.SizeGB < sizeGB {
		return fmt.Errorf("shrink root disk of %s from %d to %d GiB: %w", instanceID, r.SizeGB, sizeGB, storage.ErrUnsupported)
	}
	if err := shrink(); err != nil {
		return fmt.Errorf("shrink root disk of %s to %d GiB: %w", instanceID, sizeGB, err)
	}
	r.SizeGB = sizeGB
	return p.Set(instanceID, r)
}
