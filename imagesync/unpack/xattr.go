package unpack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/idattr"
)

// Keys of PAX records: SCHILY.xattr. by star, GNU tar and LXD; SCHILY.acl. by GNU tar --acls.
const (
	paxXattr      = "SCHILY.xattr."
	paxACLAccess  = "SCHILY.acl.access"
	paxACLDefault = "SCHILY.acl.default"
)

// xattrsOf picks the extended attributes of an entry that are kept.
func (t *tree) xattrsOf(entry string, records map[string]string) (map[string]string, error) {
	var kept map[string]string
	keep := func(name, value string) {
		if kept == nil {
			kept = make(map[string]string)
		}
		kept[name] = value
	}
	for key, value := range records {
		name, isXattr := strings.CutPrefix(key, paxXattr)
		switch {
		case key == paxACLAccess || key == paxACLDefault:
			acl, ok := parseACL(value)
			if !ok {
				t.stats.SkippedXattrs++
				continue
			}
			keep(map[string]string{paxACLAccess: idattr.ACLAccess, paxACLDefault: idattr.ACLDefault}[key], acl)
		case !isXattr:
		case strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay."):
			return nil, &Error{Entry: entry, Reason: "has the overlayfs attribute " + name}
		case name == idattr.ACLAccess || name == idattr.ACLDefault || name == idattr.Capability || strings.HasPrefix(name, "user."):
			keep(name, value)
		default:
			t.stats.SkippedXattrs++
		}
	}
	return kept, nil
}

// setXattr sets one attribute. What only root may set is left out for others.
func (t *tree) setXattr(fd int, name, value string) error {
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM) && !t.asRoot:
		t.stats.SkippedXattrs++
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE):
		// ext4 says ENOSPC when an attribute does not fit its block: not a full disk.
		return &Error{Reason: fmt.Sprintf("has the attribute %s of %d bytes, too large for the store's file system", name, len(value))}
	case errors.Is(err, unix.EINVAL):
		return &Error{Reason: fmt.Sprintf("has the attribute %s with a value that the kernel refuses", name)}
	}
	return fmt.Errorf("set %s: %w", name, err)
}

// Access list entries as the kernel stores them (include/uapi/linux/posix_acl_xattr.h).
const (
	aclVersion  = 2
	aclNoID     = ^uint32(0)
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// parseACL turns the text form of an access list ("user::rwx,user:name:r-x:1000,…",
// also one entry a line) into the kernel's. False: a named entry without a number, or no list.
func parseACL(text string) (string, bool) {
	var entries []aclEntry
	for field := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		field, _, _ = strings.Cut(field, "#")
		if field = strings.TrimSpace(field); field == "" {
			continue
		}
		e, ok := parseACLEntry(field)
		if !ok {
			return "", false
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return "", false
	}
	slices.SortStableFunc(entries, func(a, b aclEntry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return int(int64(a.id) - int64(b.id))
	})
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return string(out), true
}

func parseACLEntry(field string) (aclEntry, bool) {
	parts := strings.Split(field, ":")
	if len(parts) < 3 {
		return aclEntry{}, false
	}
	named := parts[1] != ""
	e := aclEntry{id: aclNoID}
	switch parts[0] {
	case "user", "u":
		e.tag = aclUserObj
		if named {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if named {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return aclEntry{}, false
	}
	if named {
		number := parts[1]
		if len(parts) > 3 {
			number = parts[3]
		}
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return aclEntry{}, false
		}
		e.id = uint32(id)
	}
	for _, c := range parts[2] {
		switch c {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return aclEntry{}, false
		}
	}
	return e, true
}
