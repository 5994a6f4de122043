package transfer

import (
	"encoding/binary"
	"fmt"
	"strings"

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

// Forms of security.capability (include/uapi/linux/capability.h) and of access lists
// (include/uapi/linux/posix_acl_xattr.h).
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capSize2        = 20
	capSize3        = 24

	aclHeader = 4
	aclEntry  = 8
	aclUser   = 0x02
	aclGroup  = 0x08
)

const (
	capability    = "security.capability"
	overlayPrefix = "trusted.overlay."
)

// carried tells whether an attribute is part of the tree. Of an overlay's own ones, those
// that name an image's inode are not: the other host's copy has others.
func carried(name string, layer bool) bool {
	switch {
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "system.posix_acl_"), name == capability:
		return true
	case layer:
		return name == overlayPrefix+"opaque" || name == overlayPrefix+"redirect"
	}
	return false
}

// shiftXattr converts the ids that are inside a value.
func shiftXattr(name string, value []byte, shift func(uint32) (uint32, error)) ([]byte, error) {
	switch {
	case name == capability:
		return shiftCapability(value, shift)
	case strings.HasPrefix(name, "system.posix_acl_"):
		return shiftACL(value, shift)
	}
	return value, nil
}

// shiftCapability converts the root to whom a file's capabilities belong. On the wire they are always of
// revision 3. Revision 2 belongs to the host's root, whom no program of the guest may become: it is
// taken for the guest's.
func shiftCapability(value []byte, shift func(uint32) (uint32, error)) ([]byte, error) {
	if len(value) != capSize2 && len(value) != capSize3 {
		return nil, fmt.Errorf("file capabilities of %d bytes are not known", len(value))
	}
	magic := binary.LittleEndian.Uint32(value)
	out := make([]byte, capSize3)
	copy(out, value)
	binary.LittleEndian.PutUint32(out, magic&^capRevisionMask|capRevision3)
	switch {
	case magic&capRevisionMask == capRevision3 && len(value) == capSize3:
		id, err := shift(binary.LittleEndian.Uint32(value[capSize2:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(out[capSize2:], id)
	case magic&capRevisionMask == capRevision2 && len(value) == capSize2:
	default:
		return nil, fmt.Errorf("file capabilities of revision %#x are not known", magic&capRevisionMask)
	}
	return out, nil
}

func shiftACL(value []byte, shift func(uint32) (uint32, error)) ([]byte, error) {
	if len(value) < aclHeader || (len(value)-aclHeader)%aclEntry != 0 {
		return nil, fmt.Errorf("access list of %d bytes is damaged", len(value))
	}
	out := append([]byte(nil), value...)
	for e := out[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		if tag := binary.LittleEndian.Uint16(e); tag != aclUser && tag != aclGroup {
			continue
		}
		id, err := shift(binary.LittleEndian.Uint32(e[4:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(e[4:], id)
	}
	return out, nil
}
