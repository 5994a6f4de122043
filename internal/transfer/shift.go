package transfer

import (
	"fmt"
	"strings"

	"github.com/compute-agent/compute-agent/internal/idattr"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// overflowID is who owns a file to the guest whose owner is none of its ids.
const overflowID = 65534

// toGuest gives an id of the host as the guest sees it.
func toGuest(id uint32, ids storage.IDRange) uint32 {
	if id < ids.Base || id-ids.Base >= ids.Size {
		return overflowID
	}
	return id - ids.Base
}

// toHost gives a guest's id as the host knows it.
func toHost(id uint32, ids storage.IDRange) (uint32, error) {
	if id >= ids.Size {
		return 0, fmt.Errorf("owner %d is beyond the %d ids of the instance", id, ids.Size)
	}
	return ids.Base + id, nil
}

const overlayPrefix = "trusted.overlay."

// carried tells whether an attribute is part of the tree. Of an overlay's own ones, those
// that name an image's inode are not: the other host's copy has others.
func carried(name string, layer bool) bool {
	switch {
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "system.posix_acl_"), name == idattr.Capability:
		return true
	case layer:
		return name == overlayPrefix+"opaque" || name == overlayPrefix+"redirect"
	}
	return false
}

// shiftXattr converts the ids that are inside a value. On the wire capabilities are always of revision 3.
// Revision 2 belongs to the host's root, whom no program of the guest may become: it is taken for the guest's.
func shiftXattr(name string, value []byte, shift func(uint32) (uint32, error)) ([]byte, error) {
	switch {
	case name == idattr.Capability:
		root, named, err := idattr.CapabilityRoot(value)
		if err == nil && named {
			root, err = shift(root)
		}
		if err != nil {
			return nil, err
		}
		return idattr.NameRoot(value, root), nil
	case strings.HasPrefix(name, "system.posix_acl_"):
		return idattr.ShiftACL(value, shift)
	}
	return value, nil
}
