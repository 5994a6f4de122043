package glanceimage

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

const (
	// firstUnified is the first systemd that is let try where there is cgroup v2 alone. Images with an older one, such as those of
	// Ubuntu 16.04 and CentOS 7, are those that carry requirements.cgroup=v1 on the public image servers.
	firstUnified = 231
	// lastLegacy is the last systemd that knows cgroup v1 (systemd's NEWS, "CHANGES WITH 258").
	lastLegacy = 257
)

// sharedLibrary is systemd's own, which has its version in its name since 231: "252", "257.6-1.fc42", "239-82.el8".
var sharedLibrary = regexp.MustCompile(`^libsystemd-shared-(\d+)[^/]*\.so$`)

// libraryDirs are where distributions put it, beside the binary, or by architecture.
var libraryDirs = []string{"usr/lib/systemd", "lib/systemd", "usr/lib64/systemd"}

// CheckInit refuses an image whose systemd cannot boot on this host: the guest would end, or hang, right after its start and
// its owner would have to guess why. Another host may have the control groups that it needs. What is not systemd,
// or does not tell its version, is given the benefit of the doubt. rootfs is an image's tree in the store.
func CheckInit(imageID, rootfs string, cgroups hostinfo.Layout) error {
	version, ok := systemdVersion(rootfs)
	if !ok {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return exception.ComputeResourcesUnavailable("image " + imageID + ": " + fmt.Sprintf(format, args...))
	}
	switch {
	case cgroups == hostinfo.CgroupV2 && version < firstUnified:
		return refuse("its systemd is older than %d and needs cgroup v1, this host has v2 alone", firstUnified)
	case (cgroups == hostinfo.CgroupV1 || cgroups == hostinfo.CgroupHybrid) && version > lastLegacy:
		return refuse("its systemd %d needs cgroup v2, this host has v1", version)
	}
	return nil
}

// systemdVersion is the version of a tree's systemd; of one that has no library of its own, some version before there was one. The tree is a
// tenant's: names are looked up beneath it, and nothing is opened but directories.
func systemdVersion(rootfs string) (version int, ok bool) {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return 0, false
	}
	defer root.Close() //nolint:errcheck // nothing was written
	if target, err := root.Readlink("sbin/init"); err != nil || path.Base(target) != "systemd" {
		return 0, false
	}
	tree := root.FS()
	for _, dir := range append(architectureDirs(tree), libraryDirs...) {
		entries, err := fs.ReadDir(tree, dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if m := sharedLibrary.FindStringSubmatch(e.Name()); m != nil {
				if version, err = strconv.Atoi(m[1]); err == nil {
					return version, true
				}
			}
		}
	}
	return 0, true
}

// architectureDirs are Debian's, such as usr/lib/x86_64-linux-gnu/systemd.
func architectureDirs(tree fs.FS) []string {
	var dirs []string
	for _, lib := range []string{"usr/lib", "lib"} {
		found, err := fs.Glob(tree, lib+"/*-linux-gnu*/systemd")
		if err == nil {
			dirs = append(dirs, found...)
		}
	}
	return dirs
}
