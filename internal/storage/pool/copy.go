package pool

import (
	"fmt"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// CopyRoot makes a root disk under another instance id; fill copies the content into its directory. A root disk
// without a size is a plain directory and is not copied: storage.ErrUnsupported.
func CopyRoot(p *Pool[storage.Root], from string, to storage.Root, fill func(dir string) error) error {
	have, err := p.Get(from)
	if err != nil {
		return fmt.Errorf("copy root disk: %w", err)
	}
	if have.SizeGB == 0 {
		return fmt.Errorf("copy root disk of %s: %w: it has no size", from, storage.ErrUnsupported)
	}
	have.InstanceID = to.InstanceID
	err = have.Check()
	if err == nil {
		err = p.Add(to.InstanceID, have, fill)
	}
	if err != nil {
		return fmt.Errorf("copy root disk of %s: %w", from, err)
	}
	return nil
}
