package imagesync

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// inits are the programs that a container's init can be, and shells besides for
// images that bring their own way to start.
var inits = []string{
	"sbin/init", "usr/sbin/init", "lib/systemd/systemd", "usr/lib/systemd/systemd", "bin/init", "etc/init", "init", "linuxrc",
	"bin/busybox", "usr/bin/busybox", "bin/sh", "usr/bin/sh",
}

// arrange brings an unpacked archive (stage/tree) into the form of the store
// (stage/image). A unified image has metadata.yaml and rootfs at its top, as LXD
// exports it; any other tree is the root file system itself. Its metadata.yaml is in the
// other half of a split image, which importMetadata has unpacked, or is made here.
// meta is that of the image's own file, nil if it has none.
func arrange(stage string, r Request) (meta *Metadata, templates bool, err error) {
	tree, image := filepath.Join(stage, "tree"), filepath.Join(stage, "image")
	if err := os.Mkdir(image, 0o700); err != nil {
		return nil, false, fmt.Errorf("arrange image: %w", err)
	}
	root, described := tree, ""
	unified := isDir(tree, "rootfs") && isFile(tree, "metadata.yaml")
	switch {
	case unified && r.MetadataImage != nil:
		return nil, false, &refused{found: "an LXD unified image that names a metadata image", want: "one or the other: without the property lxc_metadata_image, or the root file system alone"}
	case unified:
		root, described = filepath.Join(tree, "rootfs"), tree
	case r.MetadataImage != nil:
		described = filepath.Join(stage, splitDir, "tree")
	}
	if described != "" {
		if meta, templates, err = takeMetadata(described, image, r); err != nil {
			return nil, false, err
		}
	}
	if err := checkRoot(root); err != nil {
		return nil, false, err
	}
	written := makeMetadata(r, time.Now())
	if meta != nil {
		written = *meta
	}
	text, err := written.YAML()
	if err != nil {
		return nil, false, err
	}
	if err := os.WriteFile(filepath.Join(image, "metadata.yaml"), text, 0o600); err != nil {
		return nil, false, fmt.Errorf("arrange image: %w", err)
	}
	if err := os.Rename(root, filepath.Join(image, "rootfs")); err != nil {
		return nil, false, fmt.Errorf("arrange image: %w", err)
	}
	return meta, templates, nil
}

// takeMetadata reads the metadata.yaml of a directory and moves its templates to the image.
func takeMetadata(dir, image string, r Request) (meta *Metadata, templates bool, err error) {
	if meta, err = readMetadata(filepath.Join(dir, "metadata.yaml")); err != nil {
		return nil, false, err
	}
	if err := r.checkArch(*meta); err != nil {
		return nil, false, err
	}
	if templates = isDir(dir, "templates"); templates {
		if err := os.Rename(filepath.Join(dir, "templates"), filepath.Join(image, "templates")); err != nil {
			return nil, false, fmt.Errorf("arrange image: %w", err)
		}
	}
	return meta, templates, nil
}

func readMetadata(file string) (*Metadata, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read metadata.yaml: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	m, err := ParseMetadata(f)
	if err != nil {
		return nil, &refused{found: err.Error(), want: "the format of LXD's image metadata"}
	}
	return &m, nil
}

// checkRoot tells whether the tree looks like a root file system that can start:
// it has an init or a shell, and /etc or /usr.
func checkRoot(root string) error {
	hasInit := slices.ContainsFunc(inits, func(path string) bool { return exists(root, path) })
	if hasInit && (isDir(root, "etc") || isDir(root, "usr") || isDir(root, "bin")) {
		return nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("arrange image: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := "the root directory, with an init or a shell, at the top of the archive"
	if isFile(root, "metadata.yaml") {
		want = "of a split image, the root file system, with this image's id in its property lxc_metadata_image"
	}
	return &refused{found: "an archive that is no root file system: " + describe(names), want: want}
}

func describe(names []string) string {
	const shown = 8
	switch {
	case len(names) == 0:
		return "it is empty"
	case len(names) > shown:
		return fmt.Sprintf("its top holds %q and %d more", strings.Join(names[:shown], " "), len(names)-shown)
	}
	return fmt.Sprintf("its top holds only %q", strings.Join(names, " "))
}

// exists does not follow a link at the end; those on the way are the image's own,
// so a path may lead outside the tree, where finding a file does no harm but would
// deceive: such a path counts as absent.
func exists(root, path string) bool {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return false
	}
	defer dir.Close() //nolint:errcheck // only read
	_, err = dir.Lstat(path)
	return err == nil
}

func isDir(root, name string) bool {
	info, err := os.Lstat(filepath.Join(root, name))
	return err == nil && info.IsDir()
}

func isFile(root, name string) bool {
	info, err := os.Lstat(filepath.Join(root, name))
	return err == nil && info.Mode().IsRegular()
}
