// Package unpack writes the tree of an untrusted archive beneath one directory.
//
// Nothing is ever resolved by path: each component is opened from its parent's
// descriptor with O_NOFOLLOW, so names with "..", symbolic links and hard links
// cannot lead outside, whatever the archive says and in whatever order. Symbolic
// links are written as data. Descriptors of the current directory chain are kept
// open, because archives list a directory's members together.
//
// Kept: owners, modes with setuid and setgid, times, symbolic and hard links,
// fifos, holes, and the extended attributes user.*, security.capability and the
// POSIX access lists. Not kept: device nodes, which a guest in a user namespace
// cannot open, and attributes of the host's security modules. Refused: overlayfs
// whiteouts and attributes, which would change the meaning of the layer the tree
// is used as, and owners beyond the ids that a guest has.
package unpack

import (
	"fmt"
	"strings"
)

// Limits bound what an archive may cost. All must be set.
type Limits struct {
	Entries int    // most entries
	Bytes   int64  // most bytes of file content, holes included
	Reserve int64  // free bytes that must stay on the file system
	MaxID   uint32 // largest user or group id
}

// Stats tells what was written and what was left out.
type Stats struct {
	Entries       int   // files, directories, links, fifos written
	Bytes         int64 // bytes of file content, holes included
	Devices       int   // device nodes left out
	SkippedXattrs int   // extended attributes left out
}

// Error tells that the archive's content is at fault: damaged, hostile or too large.
// Any other error of this package is the host's: its disk, its limits, the deadline.
type Error struct {
	Entry  string // name in the archive; empty: the archive as a whole
	Reason string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Entry == "" {
		return "archive " + e.Reason
	}
	return fmt.Sprintf("entry %q %s", shorten(e.Entry), e.Reason)
}

// shorten keeps messages readable when a name is made to be long.
func shorten(name string) string {
	const limit = 200
	if len(name) <= limit {
		return name
	}
	return name[:limit] + "…"
}

// maxDepth bounds the chain of open directories, one descriptor each.
const maxDepth = 256

// nameMax is the kernel's limit for one component.
const nameMax = 255

// split gives the components of an entry's name: leading slashes and "." vanish,
// ".." and NUL are refused. No component: the root itself.
func split(name string) ([]string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return nil, &Error{Entry: name, Reason: "has a NUL byte in its name"}
	}
	parts := make([]string, 0, strings.Count(name, "/")+1)
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			return nil, &Error{Entry: name, Reason: "has '..' in its name"}
		}
		if len(part) > nameMax {
			return nil, &Error{Entry: name, Reason: fmt.Sprintf("has a name of %d bytes, more than %d", len(part), nameMax)}
		}
		parts = append(parts, part)
	}
	if len(parts) > maxDepth {
		return nil, &Error{Entry: name, Reason: fmt.Sprintf("is more than %d directories deep", maxDepth)}
	}
	return parts, nil
}
