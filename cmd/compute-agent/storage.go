package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/btrfs"
	"github.com/compute-agent/compute-agent/internal/storage/dir"
	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/overlay"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/prjquota"
)

// openRoots opens the pool in instances_dir and those of [lxc] extra_pools.
func openRoots(ctx context.Context, c *config.Config) (storage.Pooled, error) {
	main, err := openPool(ctx, c, c.LXC.InstancesDir, c.LXC.StorageBackend)
	if err != nil {
		return nil, fmt.Errorf("storage back end %s ([lxc] storage_backend): %w", c.LXC.StorageBackend, err)
	}
	extra := map[string]storage.Pool{}
	for _, p := range c.LXC.ExtraPools {
		// It is not made here: where a file system is to be mounted and is not, its servers' root disks would seem to be gone.
		if _, err := os.Stat(p.Dir); err != nil {
			return nil, fmt.Errorf("storage pool %s ([lxc] extra_pools): %w", p.Name, err)
		}
		if extra[p.Name], err = openPool(ctx, c, p.Dir, p.Backend); err != nil {
			return nil, fmt.Errorf("storage pool %s, back end %s ([lxc] extra_pools): %w", p.Name, p.Backend, err)
		}
	}
	return storage.Pools(main, extra), nil
}

// openPool opens the back end of a pool, and those that have root disks there from the time when they were its
// back end. Nested guests want to mount overlays themselves, which an overlay does not allow: they get a tree of their own.
func openPool(ctx context.Context, c *config.Config, directory, backend string) (storage.Pool, error) {
	opened := map[string]storage.Backend{}
	// In a pool of btrfs the others make no root disks any more.
	o := pool.FileOptions{InodesPerGB: c.LXC.RootDiskInodesPerGB, ProjectQuota: wantsProjects(c, backend)}
	for name, open := range map[string]func(path string) (storage.Backend, error){
		"dir":     func(path string) (storage.Backend, error) { return dir.New(path, o) },
		"overlay": func(path string) (storage.Backend, error) { return overlay.New(ctx, path, o) },
		"btrfs":   func(path string) (storage.Backend, error) { return btrfs.New(path, c.LXC.RootDiskInodesPerGB) },
	} {
		path := filepath.Join(directory, name)
		wanted := name == backend || name == "dir" && backend == "overlay"
		if _, err := os.Stat(path); !wanted && errors.Is(err, os.ErrNotExist) {
			continue
		}
		b, err := open(path)
		if err != nil {
			return storage.Pool{}, err
		}
		opened[name] = b
	}
	p := storage.Pool{Normal: opened[backend], Nested: opened[backend]}
	if backend == "overlay" {
		p.Nested = opened["dir"]
	}
	for _, b := range opened {
		p.Others = append(p.Others, b)
	}
	return p, nil
}

// wantsProjects tells whether new root disks of a back end are bounded by project quotas.
func wantsProjects(c *config.Config, backend string) bool {
	return c.LXC.RootDiskQuota == "project" && backend != "btrfs"
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
	disks, ok := h.disks.(storage.Devicer)
	if !ok {
		return all, nil
	}
	devices, err := disks.Devices(ctx, uuid)
	return append(all, devices...), err
}

// addRunner has a part of the host work in the background if it has anything to do there.
func (h *host) addRunner(part any) {
	if r, ok := part.(storage.Runner); ok {
		h.runners = append(h.runners, r)
	}
}

// checkStorage tells what this host lacks for its back ends, without changing anything: the configuration may
// be checked by anyone, and for another host.
func checkStorage(c *config.Config) []config.Finding {
	what := "instances_dir " + c.LXC.InstancesDir
	findings := checkPool("storage_backend", c.LXC.StorageBackend, what, c.LXC.StorageBackend, c.LXC.InstancesDir)
	findings = append(findings, checkQuota(c, what, c.LXC.StorageBackend, c.LXC.InstancesDir)...)
	for _, p := range c.LXC.ExtraPools {
		what := "directory " + p.Dir + " of pool " + p.Name
		if _, ok := deviceOf(p.Dir); !ok {
			findings = append(findings, poolFinding("extra_pools", p.Name, what+" does not exist", "make it, or mount the pool's file system there"))
			continue
		}
		findings = append(findings, checkPool("extra_pools", p.Name, what, p.Backend, p.Dir)...)
		findings = append(findings, checkQuota(c, what, p.Backend, p.Dir)...)
	}
	return findings
}

// checkSharing tells of pools whose room is counted twice: they are on one file system.
func checkSharing(c *config.Config) []config.Finding {
	var findings []config.Finding
	seen := map[uint64]string{}
	if device, ok := deviceOf(c.LXC.InstancesDir); ok {
		seen[device] = "instances_dir"
	}
	for _, p := range c.LXC.ExtraPools {
		device, ok := deviceOf(p.Dir)
		if !ok {
			continue
		}
		if other, shared := seen[device]; shared {
			findings = append(findings, poolFinding("extra_pools", p.Name, "pool "+p.Name+" is on the file system of "+other+", whose room Placement counts for both",
				"give each a file system of its own, or reserve what is the other's"))
			continue
		}
		seen[device] = "pool " + p.Name
	}
	return findings
}

func poolFinding(option, value, message, remedy string) config.Finding {
	return config.Finding{Section: "lxc", Option: option, Value: value, Message: message, Remedy: remedy}
}

// checkPool tells what the host lacks for one back end in one directory; what says which that is.
func checkPool(option, value, what, backend, directory string) []config.Finding {
	var findings []config.Finding
	warn := func(message, remedy string) {
		findings = append(findings, poolFinding(option, value, message, remedy))
	}
	needs := map[string][]string{"overlay": {"overlay", "ext4"}, "dir": {"ext4"}, "btrfs": {"btrfs", "ext4"}}[backend]
	for _, fs := range needs {
		if known, err := mount.Supported(fs); err == nil && !known {
			warn("this host's kernel has no file system "+fs, "use a kernel with it, or choose another back end")
		}
	}
	if backend == "btrfs" {
		if kind := typeOfNearest(directory); kind != "btrfs" {
			warn(what+" is not on a btrfs file system", "mount one there, or choose another back end")
		}
	}
	if _, err := os.Stat(ext4.Program); err != nil {
		warn(ext4.Program+" is missing", "install e2fsprogs")
	}
	return findings
}

// checkQuota tells what a pool's file system lacks for [lxc] root_disk_quota.
func checkQuota(c *config.Config, what, backend, directory string) []config.Finding {
	if !wantsProjects(c, backend) {
		return nil
	}
	if err := prjquota.Check(nearest(directory)); err != nil {
		return []config.Finding{poolFinding("root_disk_quota", c.LXC.RootDiskQuota, what+": "+err.Error(),
			"mount it with prjquota (ext4 wants tune2fs -O project,quota first), or set root_disk_quota = file")}
	}
	return nil
}

// deviceOf is the file system that a directory is on; false: it does not exist.
func deviceOf(path string) (uint64, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, false
	}
	return st.Dev, true
}

// typeOfNearest is the file system on which a directory is, or will be once it is made.
func typeOfNearest(path string) string {
	kind, err := mount.Type(nearest(path))
	if err != nil {
		return ""
	}
	return kind
}

// nearest is the directory itself, or the first above it that is there.
func nearest(path string) string {
	for ; ; path = filepath.Dir(path) {
		if _, err := os.Stat(path); err == nil || path == "/" {
			return path
		}
	}
}
