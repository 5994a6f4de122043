// Package idattr reads and changes the ids inside extended attributes. The capabilities of a file belong
// to a root user, and an access list names users and groups: in a tree whose owners are moved to other
// ids, these move, too.
package idattr

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Names of the attributes.
const (
	Capability = "security.capability"
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

// Forms of security.capability (include/uapi/linux/capability.h).
const (
	revisionMask = 0xff000000
	revision2    = 0x02000000
	revision3    = 0x03000000
	size2        = 20
	size3        = 24 // with the root id behind
)

// Forms of access lists (include/uapi/linux/posix_acl_xattr.h).
const (
	aclHeader = 4
	aclEntry  = 8 // tag, permissions, id
	aclUser   = 0x02
	aclGroup  = 0x08
)

// CapabilityRoot gives the root user to whom a file's capabilities belong: revision 3 names it. Revision 2,
// with named false, belongs to the root of the user namespace that the file system was mounted in.
func CapabilityRoot(value []byte) (root uint32, named bool, err error) {
	if len(value) != size2 && len(value) != size3 {
		return 0, false, fmt.Errorf("file capabilities of %d bytes are not known", len(value))
	}
	switch revision := binary.LittleEndian.Uint32(value) & revisionMask; {
	case revision == revision2 && len(value) == size2:
		return 0, false, nil
	case revision == revision3 && len(value) == size3:
		return binary.LittleEndian.Uint32(value[size2:]), true, nil
	default:
		return 0, false, fmt.Errorf("file capabilities of revision %#x and %d bytes are not known", revision, len(value))
	}
}

// NameRoot gives capabilities that CapabilityRoot has accepted to a root user: revision 3.
func NameRoot(value []byte, root uint32) []byte {
	return binary.LittleEndian.AppendUint32(withRevision(value, revision3), root)
}

// DropRoot makes them revision 2.
func DropRoot(value []byte) []byte { return withRevision(value, revision2) }

func withRevision(value []byte, revision uint32) []byte {
	out := slices.Clone(value[:size2])
	binary.LittleEndian.PutUint32(out, binary.LittleEndian.Uint32(value)&^revisionMask|revision)
	return out
}

// ShiftACL gives an access list with other ids.
func ShiftACL(value []byte, shift func(id uint32) (uint32, error)) ([]byte, error) {
	if len(value) < aclHeader || (len(value)-aclHeader)%aclEntry != 0 {
		return nil, fmt.Errorf("access list of %d bytes is damaged", len(value))
	}
	out := slices.Clone(value)
	for e := out[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		if tag := binary.LittleEndian.Uint16(e); tag != aclUser && tag != aclGroup {
			continue // owner, group, mask and others have no id
		}
		id, err := shift(binary.LittleEndian.Uint32(e[4:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(e[4:], id)
	}
	return out, nil
}
