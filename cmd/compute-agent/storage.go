package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/btrfs"
	"github.com/compute-agent/compute-agent/internal/storage/dir"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/overlay"
)

// openRoots opens the back end that [lxc] storage_backend names, and those that have root disks from the
// time when it named them. Nested guests want to mount overlays themselves, which an overlay does not allow: they
// get a tree of their own.
func openRoots(ctx context.Context, c *config.Config) (storage.Backend, error) {
	opened := map[string]storage.Backend{}
	for name, open := range map[string]func(path string) (storage.Backend, error){
		"dir":     func(path string) (storage.Backend, error) { return dir.New(path, c.LXC.RootDiskInodesPerGB) },
		"overlay": func(path string) (storage.Backend, error) { return overlay.New(ctx, path, c.LXC.RootDiskInodesPerGB) },
		"btrfs":   func(path string) (storage.Backend, error) { return btrfs.New(path) },
	} {
		path := filepath.Join(c.LXC.InstancesDir, name)
		wanted := name == c.LXC.StorageBackend || name == "dir" && c.LXC.StorageBackend == "overlay"
		if _, err := os.Stat(path); !wanted && errors.Is(err, os.ErrNotExist) {
			continue
		}
		b, err := open(path)
		if err != nil {
			return nil, fmt.Errorf("storage back end %s ([lxc] storage_backend): %w", name, err)
		}
		opened[name] = b
	}
	normal := opened[c.LXC.StorageBackend]
	nested := normal
	if c.LXC.StorageBackend == "overlay" {
		nested = opened["dir"]
	}
	others := make([]storage.Backend, 0, len(opened))
	for _, b := range opened {
		others = append(others, b)
	}
	return storage.Choose(normal, nested, others...), nil
}

// devices are the block devices below an instance's disks, for the driver to throttle.
func (h *host) devices(ctx context.Context, uuid string) ([]storage.Device, error) {
	var all []storage.Device
	if roots, ok := h.roots.(storage.Devicer); ok {
		devices, err := roots.Devices(ctx, uuid)
		if err != nil {
			return nil, err
		}
		all = devices
	}
	devices, err := h.disks.Devices(ctx, uuid)
	return append(all, devices...), err
}

// runners are the stores with work of their own to do.
func (h *host) runners() []storage.Runner {
	runners := []storage.Runner{h.disks}
	if roots, ok := h.roots.(storage.Runner); ok {
		runners = append(runners, roots)
	}
	return runners
}

// checkStorage tells what this host lacks for its back end, without changing anything: the configuration may
// be checked by anyone, and for another host.
func checkStorage(c *config.Config) []config.Finding {
	var findings []config.Finding
	warn := func(message, remedy string) {
		findings = append(findings, config.Finding{Section: "lxc", Option: "storage_backend", Value: c.LXC.StorageBackend, Message: message, Remedy: remedy})
	}
	needs := map[string][]string{"overlay": {"overlay", "ext4"}, "dir": {"ext4"}, "btrfs": {"btrfs"}}[c.LXC.StorageBackend]
	for _, fs := range needs {
		if known, err := mount.Supported(fs); err == nil && !known {
			warn("this host's kernel has no file system "+fs, "use a kernel with it, or choose another back end")
		}
	}
	if c.LXC.StorageBackend == "btrfs" {
		if kind := typeOfNearest(c.LXC.InstancesDir); kind != "btrfs" {
			warn("instances_dir "+c.LXC.InstancesDir+" is not on a btrfs file system", "mount one there, or choose another back end")
		}
		return findings
	}
	if _, err := os.Stat(ext4.Program); err != nil {
		warn(ext4.Program+" is missing", "install e2fsprogs")
	}
	return findings
}

// typeOfNearest is the file system on which a directory is, or will be once it is made.
func typeOfNearest(path string) string {
	for ; ; path = filepath.Dir(path) {
		if _, err := os.Stat(path); err == nil || path == "/" {
			kind, err := mount.Type(path)
			if err != nil {
				return ""
			}
			return kind
		}
	}
}
