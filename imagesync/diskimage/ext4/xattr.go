package ext4

import (
	"encoding/binary"
	"io"
)

const (
	xattrMagic      = 0xea020000
	xattrEntry      = 16
	xattrBlockStart = 32
	// maxXattr is Linux's limit for one value.
	maxXattr = 64 << 10
	// maxXattrs bounds what one inode may have in all.
	maxXattrs = 1 << 20
)

// xattrPrefixes by name index (Linux fs/ext4/xattr.h); others are skipped.
var xattrPrefixes = map[byte]string{
	1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", 7: "system.",
}

// Xattrs gives the extended attributes of an inode, in the form in which Linux shows them.
func (fs *FS) Xattrs(i *Inode) (map[string]string, error) {
	attrs, err := fs.attributes(i)
	delete(attrs, "system.data")
	return attrs, err
}

// attributes reads those in the inode and those in its block.
func (fs *FS) attributes(i *Inode) (map[string]string, error) {
	x := xattrs{fs: fs, inode: i}
	if len(i.tail) > 4 && binary.LittleEndian.Uint32(i.tail) == xattrMagic {
		if err := x.list(i.tail[4:], i.tail[4:]); err != nil {
			return nil, err
		}
	}
	if i.acl == 0 {
		return x.found, nil
	}
	b, err := fs.blockOf(i, i.acl)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(b) != xattrMagic {
		return nil, x.malformed()
	}
	b = append([]byte(nil), b...) // values in inodes are read meanwhile
	return x.found, x.list(b[xattrBlockStart:], b)
}

type xattrs struct {
	fs    *FS
	inode *Inode
	found map[string]string
	total int
}

func (x *xattrs) malformed() error {
	return bad("has inode %d with malformed extended attributes", x.inode.Number)
}

// list reads entries; the places of values count from the beginning of values.
func (x *xattrs) list(entries, values []byte) error {
	le := binary.LittleEndian
	for len(entries) >= 4 && le.Uint32(entries) != 0 {
		if len(entries) < xattrEntry {
			return x.malformed()
		}
		nameLength := int(entries[0])
		padded := (xattrEntry + nameLength + 3) &^ 3
		if padded > len(entries) {
			return x.malformed()
		}
		prefix, known := xattrPrefixes[entries[1]]
		if known {
			value, err := x.value(values, int(le.Uint16(entries[2:])), le.Uint32(entries[4:]), le.Uint32(entries[8:]))
			if err != nil {
				return err
			}
			if err := x.add(prefix, string(entries[xattrEntry:xattrEntry+nameLength]), value); err != nil {
				return err
			}
		}
		entries = entries[padded:]
	}
	return nil
}

// value reads a value from the same place or, with the feature ea_inode, from an
// inode of its own.
func (x *xattrs) value(values []byte, offset int, inode, size uint32) ([]byte, error) {
	if x.total += int(size); size > maxXattr || x.total > maxXattrs {
		return nil, bad("has inode %d with extended attributes of %d bytes", x.inode.Number, x.total)
	}
	if inode == 0 {
		if offset+int(size) > len(values) {
			return nil, x.malformed()
		}
		return values[offset : offset+int(size)], nil
	}
	holder, err := x.fs.inode(inode)
	if err != nil {
		return nil, err
	}
	if x.fs.sb.incompat&incompatEAInode == 0 || holder.flags&flagEAInode == 0 || holder.flags&flagInlineData != 0 || holder.Size != int64(size) {
		return nil, x.malformed()
	}
	f := &File{fs: x.fs, inode: holder}
	value := make([]byte, size)
	_, err = io.ReadFull(f, value)
	return value, err
}

func (x *xattrs) add(prefix, name string, value []byte) error {
	if x.found == nil {
		x.found = map[string]string{}
	}
	if prefix == "system.posix_acl_access" || prefix == "system.posix_acl_default" {
		acl, ok := aclFromDisk(value)
		if !ok || name != "" {
			return bad("has inode %d with a malformed access list", x.inode.Number)
		}
		value = acl
	}
	x.found[prefix+name] = string(value)
	return nil
}

// aclFromDisk turns an access list as ext4 stores it (Linux fs/ext4/acl.h) into the
// form of the system calls: there every entry has an id.
func aclFromDisk(disk []byte) ([]byte, bool) {
	const diskVersion, version, user, group, noID = 1, 2, 0x02, 0x08, ^uint32(0)
	le := binary.LittleEndian
	if len(disk) < 4 || le.Uint32(disk) != diskVersion {
		return nil, false
	}
	out := le.AppendUint32(nil, version)
	for e := disk[4:]; len(e) > 0; {
		if len(e) < 4 {
			return nil, false
		}
		tag, id, length := le.Uint16(e), noID, 4
		if tag == user || tag == group {
			if length = 8; len(e) < length {
				return nil, false
			}
			id = le.Uint32(e[4:])
		}
		out = append(out, e[:4]...)
		out = le.AppendUint32(out, id)
		e = e[length:]
	}
	return out, true
}
