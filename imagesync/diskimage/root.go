package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/imagesync/diskimage/ext4"
	"github.com/compute-agent/compute-agent/imagesync/diskimage/partition"
)

// rootTypes are the types of root partitions by architecture in Nova's spelling
// (the Discoverable Partitions Specification).
var rootTypes = map[string]string{
	"44479540-f297-41b2-9af7-d131d5f0458a": "i686",
	"4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "x86_64",
	"69dad710-2ce4-4e3c-b16c-21a1d49abed3": "armv7l",
	"b921b045-1df0-41c3-af44-4c6f280d3fae": "aarch64",
	"912ade1d-a839-4913-8964-a10eee08fbd2": "ppc64",
	"c31c45e6-3f39-412e-80fb-4809c4980599": "ppc64le",
	"60d5a7fe-8e7d-435c-b714-3dd8162144e1": "riscv64",
	"5eead9a9-fe09-4a1e-a1d7-520d00531306": "s390x",
}

// rootLabels are names of volumes or partitions that say root: Ubuntu's, and what
// image builders use.
var rootLabels = []string{"cloudimg-rootfs", "root", "rootfs"}

// Ranks of a partition, the best last.
const (
	rankAny = iota
	rankLabel
	rankType
)

// candidate is one partition, or the whole disk when it has no table.
type candidate struct {
	partition.Partition
	kind string // of its content
	rank int
}

func (c candidate) String() string {
	kind := c.kind
	switch {
	case c.Number == 0 && kind == "":
		return "neither partitions nor a known file system"
	case c.Number == 0:
		return kind + " without a partition table"
	case kind == "":
		kind = "nothing known"
	}
	return fmt.Sprintf("%s in partition %d", kind, c.Number)
}

// candidates lists what is on the disk.
func candidates(disk io.ReaderAt, size int64, arch string) ([]candidate, error) {
	whole := candidate{Partition: partition.Partition{Size: size}, kind: probe(disk)}
	// A boot sector of FAT or NTFS looks like a partition table; other file systems leave its place free.
	if whole.kind == kindExt || whole.kind == "vfat" || whole.kind == "ntfs" || whole.kind == "exfat" {
		return []candidate{whole}, nil
	}
	table, err := partition.Read(disk, size)
	if err != nil {
		return nil, err
	}
	if table.Kind == "" || len(table.Partitions) == 0 {
		return []candidate{whole}, nil
	}
	var all []candidate
	for _, p := range table.Partitions {
		c := candidate{Partition: p, kind: probe(io.NewSectionReader(disk, p.Offset, p.Size))}
		if of, ok := rootTypes[p.Type]; ok {
			if arch != "" && of != arch && (of != "i686" || arch != "x86_64") {
				return nil, &Error{Found: fmt.Sprintf("a disk whose partition %d is a root for %s", p.Number, of), Want: "an image for this host's " + arch}
			}
			c.rank = rankType
		} else if slices.Contains(rootLabels, p.Name) {
			c.rank = rankLabel
		}
		all = append(all, c)
	}
	return all, nil
}

// chooseRoot finds the root file system: by its partition's type, by its label, or
// by what is in it, in this order; the first of several.
func chooseRoot(ctx context.Context, disk io.ReaderAt, size int64, arch string) (*ext4.FS, candidate, error) {
	all, err := candidates(disk, size, arch)
	if err != nil {
		return nil, candidate{}, err
	}
	// What says that it is the root, and cannot be read, is not passed over for a lesser one.
	for _, c := range all {
		if c.rank == rankType && c.kind != kindExt {
			return nil, candidate{}, refuse(all, "a disk with its root as "+c.String())
		}
	}
	var found *ext4.FS
	var chosen candidate
	var reasons []error
	for _, c := range all {
		if c.kind != kindExt {
			continue
		}
		fs, err := openRoot(ctx, io.NewSectionReader(disk, c.Offset, c.Size), c.Size)
		if err != nil && (!isContent(err) || c.rank == rankType) {
			return nil, candidate{}, err
		}
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		if c.rank == rankAny && slices.Contains(rootLabels, fs.Label()) {
			c.rank = rankLabel
		}
		if found == nil || c.rank > chosen.rank {
			found, chosen = fs, c
		}
	}
	if found == nil && len(reasons) > 0 {
		return nil, candidate{}, reasons[0]
	}
	if found == nil {
		return nil, candidate{}, refuse(all, "a disk with "+describe(all))
	}
	return found, chosen, nil
}

func describe(all []candidate) string {
	const shown = 8
	parts := make([]string, 0, shown)
	for _, c := range all[:min(len(all), shown)] {
		parts = append(parts, c.String())
	}
	if len(all) > shown {
		parts = append(parts, fmt.Sprintf("%d more", len(all)-shown))
	}
	return strings.Join(parts, ", ")
}

// refuse says what would work instead of what is there.
func refuse(all []candidate, found string) error {
	want := "a root file system of ext4, ext3 or ext2 in a partition or on the whole disk"
	if slices.ContainsFunc(all, func(c candidate) bool { return strings.Contains(c.kind, "encryption") }) {
		want += ", not encrypted"
	}
	return &Error{Found: found, Want: want + "; or the root directory as a tar archive with disk_format raw"}
}

// openRoot opens a file system that must look like a root.
func openRoot(ctx context.Context, disk io.ReaderAt, size int64) (*ext4.FS, error) {
	fs, err := ext4.Open(ctx, disk, size)
	if err != nil {
		return nil, err
	}
	for _, need := range [][]string{{"etc"}, {"sbin", "usr"}} {
		ok, err := hasAny(fs, need)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, &Error{
				Found: "a disk whose ext4 file system has no /" + strings.Join(need, " and no /"),
				Want:  "one with the root file system, with its init",
			}
		}
	}
	return fs, nil
}

func hasAny(fs *ext4.FS, names []string) (bool, error) {
	for _, name := range names {
		if i, err := fs.Lookup(name); err != nil || i != nil {
			return err == nil, err
		}
	}
	return false, nil
}

// isContent tells errors of the image from those of the host.
func isContent(err error) bool {
	_, ok := asContent(err)
	return ok
}

// asContent gives an error of the image in the form that this package returns.
func asContent(err error) (*Error, bool) {
	if own, ok := errors.AsType[*Error](err); ok {
		return own, true
	}
	if fs, ok := errors.AsType[*ext4.Error](err); ok {
		return &Error{Found: "a disk with an ext4 file system that " + fs.Found, Want: fs.Want}, true
	}
	if table, ok := errors.AsType[*partition.Error](err); ok {
		return &Error{Found: "a disk " + table.Found}, true
	}
	return nil, false
}
