package pack

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of the attributes with a meaning of their own.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
)

// Layouts with ids inside: include/uapi/linux/capability.h and posix_acl_xattr.h.
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capV2Size       = 20
	capV3Size       = 24

	aclHeader = 4
	aclEntry  = 8
	aclUser   = 0x02
	aclGroup  = 0x08
)

// maxXattrs bounds the list of names; the kernel's own bound (XATTR_LIST_MAX).
const maxXattrs = 64 << 10

// xattrs reads the attributes that are kept.
func (p *packer) xattrs(fd int) (map[string]string, error) {
	var small [256]byte
	n, err := unix.Flistxattr(fd, small[:])
	list := small[:max(n, 0)]
	if errors.Is(err, unix.ERANGE) {
		large := make([]byte, maxXattrs)
		n, err = unix.Flistxattr(fd, large)
		list = large[:max(n, 0)]
	}
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	kept := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if !p.keeps(name) {
			p.stats.SkippedXattrs++
			continue
		}
		value, ok, err := xattr(fd, name)
		if err != nil {
			return nil, err
		}
		if ok {
			value, ok = p.translate(name, value)
		}
		if !ok {
			p.stats.SkippedXattrs++
			continue
		}
		kept[name] = string(value)
	}
	return kept, nil
}

// keeps tells whether an attribute belongs to the image: not those of the host's
// security modules, not overlayfs's, and none whose name a PAX record cannot hold.
func (p *packer) keeps(name string) bool {
	if name == aclAccess || name == aclDefault || name == capability {
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && !strings.ContainsRune(name, '=')
}

// xattr reads one attribute; false: it is gone meanwhile.
func xattr(fd int, name string) ([]byte, bool, error) {
	value := make([]byte, 512)
	n, err := unix.Fgetxattr(fd, name, value)
	if errors.Is(err, unix.ERANGE) {
		value = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, value)
	}
	if errors.Is(err, unix.ENODATA) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return value[:n], true, nil
}

// translate shifts the ids inside a value; false: the guest has no such id, or the value
// is not what the name says.
func (p *packer) translate(name string, value []byte) ([]byte, bool) {
	if p.shift.Count == 0 {
		return value, true
	}
	switch name {
	case capability:
		return p.shift.capability(value)
	case aclAccess, aclDefault:
		return p.shift.acl(value)
	}
	return value, true
}

// capability turns the capabilities that a guest's root has given to a file, which carry
// that root's id on the host (revision 3), into those that any reader takes (revision 2).
func (s Shift) capability(value []byte) ([]byte, bool) {
	if len(value) != capV3Size {
		return value, len(value) == capV2Size
	}
	magic := binary.LittleEndian.Uint32(value)
	if magic&capRevisionMask != capRevision3 {
		return nil, false
	}
	root, ok := s.id(binary.LittleEndian.Uint32(value[capV2Size:]))
	if !ok {
		return nil, false
	}
	if root != 0 { // of a user namespace inside the guest
		binary.LittleEndian.PutUint32(value[capV2Size:], root)
		return value, true
	}
	binary.LittleEndian.PutUint32(value, magic&^capRevisionMask|capRevision2)
	return value[:capV2Size], true
}

// acl shifts the users and groups that an access list names.
func (s Shift) acl(value []byte) ([]byte, bool) {
	if len(value) < aclHeader || (len(value)-aclHeader)%aclEntry != 0 {
		return nil, false
	}
	for e := value[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		tag := binary.LittleEndian.Uint16(e)
		if tag != aclUser && tag != aclGroup {
			continue
		}
		id, ok := s.id(binary.LittleEndian.Uint32(e[4:]))
		if !ok {
			return nil, false
		}
		binary.LittleEndian.PutUint32(e[4:], id)
	}
	return value, true
}
