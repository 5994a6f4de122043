package pack

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/idattr"
)

// errNoID: the guest does not have the id.
var errNoID = errors.New("no id of the guest")

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
	if name == idattr.ACLAccess || name == idattr.ACLDefault || name == idattr.Capability {
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
	case idattr.Capability:
		return p.shift.capability(value)
	case idattr.ACLAccess, idattr.ACLDefault:
		return p.shift.acl(value)
	}
	return value, true
}

// capability turns the capabilities that a guest's root has given to a file, which carry
// that root's id on the host (revision 3), into those that any reader takes (revision 2).
func (s Shift) capability(value []byte) ([]byte, bool) {
	root, named, err := idattr.CapabilityRoot(value)
	if err != nil || !named {
		return value, err == nil
	}
	root, ok := s.id(root)
	switch {
	case !ok:
		return nil, false
	case root != 0: // of a user namespace inside the guest
		return idattr.NameRoot(value, root), true
	}
	return idattr.DropRoot(value), true
}

// acl shifts the users and groups that an access list names.
func (s Shift) acl(value []byte) ([]byte, bool) {
	shifted, err := idattr.ShiftACL(value, func(host uint32) (uint32, error) {
		id, ok := s.id(host)
		if !ok {
			return 0, errNoID
		}
		return id, nil
	})
	return shifted, err == nil
}
