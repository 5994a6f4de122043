//go:build functional

package lxc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/drivertest"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
)

// TestFunctionalThrottle: a guest's I/O is as slow as its limits say, whether it writes past the
// page cache or the kernel writes for it later.
func TestFunctionalThrottle(t *testing.T) {
	const limit = 20 << 20
	d, spec, rootfs := throttledGuest(t, flavor.DiskLimits{TotalBytesSec: limit})

	const megabytes = 60
	want := float64(megabytes<<20) / limit
	measure := func(what string, do func()) {
		t.Helper()
		elapsed := math.Inf(1)
		for try := 0; try < 3 && elapsed > 1.35*want; try++ { // whatever else the machine does makes it slower, though not each time
			require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0))
			begin := time.Now()
			do()
			elapsed = min(elapsed, time.Since(begin).Seconds())
			t.Logf("%s: %d MiB in %.2f s, %.1f MiB/s of %d", what, megabytes, elapsed, megabytes/elapsed, limit>>20)
		}
		require.InDelta(t, want, elapsed, 0.35*want, what)
	}
	measure("written and synced", func() { run(t, d, spec.UUID, "dd if=/dev/zero of=/a bs=1M count=60 conv=fsync 2>/dev/null") })
	measure("read", func() { run(t, d, spec.UUID, "cat /a >/dev/null") })
	measure("written back later", func() {
		run(t, d, spec.UUID, "dd if=/dev/zero of=/b bs=1M count=60 2>/dev/null")
		root, err := os.Open(rootfs)
		require.NoError(t, err)
		defer root.Close()
		require.NoError(t, unix.Syncfs(int(root.Fd())))
	})

	requireFreed(t, d, spec.UUID, rootfs, "write_bps")
}

// throttledGuest starts a guest with a disk of its own that has limits.
func throttledGuest(t *testing.T, limits flavor.DiskLimits) (d *Driver, spec driver.Spec, rootfs string) {
	t.Helper()
	dir := testDir(t)
	image := filepath.Join(dir, "disk")
	rootfs = filepath.Join(dir, "root")
	require.NoError(t, os.Mkdir(rootfs, 0o755))
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 512<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, rootfs}} {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(rootfs, 0)) })
	d = newDriver(t, func(o *Options) {
		o.Disks = func(context.Context, string) ([]storage.Device, error) {
			devices, err := mount.Devices(rootfs)
			for i := range devices {
				devices[i].Own = true
			}
			return devices, err
		}
	})
	controller := map[bool]string{true: "io", false: "blkio"}[d.cgroups.layout == layoutV2]
	functest.Need(t, d.cgroups.has(controller), "cgroup controller "+controller)
	spec, plain := newSpec(t)
	require.NoError(t, os.RemoveAll(plain))
	spec.Limits.Disk = limits
	drivertest.BusyboxRootFS(t, rootfs, spec.IDs)
	require.NoError(t, d.Create(t.Context(), spec, rootfs))
	require.NoError(t, d.Start(t.Context(), spec.UUID, nil))
	return d, spec, rootfs
}

// requireFreed destroys the guest and looks whether its device is given back without a limit.
func requireFreed(t *testing.T, d *Driver, uuid, rootfs, bound string) {
	t.Helper()
	devices, err := mount.Devices(rootfs)
	require.NoError(t, err)
	require.NotEmpty(t, devices)
	if d.cgroups.layout == layoutV2 {
		return // there the limits are the guest's groups' alone
	}
	limited := func() bool {
		lines, err := os.ReadFile(d.cgroups.file("blkio", "", "blkio.throttle."+bound+"_device"))
		require.NoError(t, err)
		return strings.Contains("\n"+string(lines), "\n"+devices[0].Number+" ")
	}
	require.Equal(t, d.rootGroup(), limited(), "what is written back is limited, too")
	require.NoError(t, d.Destroy(t.Context(), uuid))
	require.False(t, limited())
}

// TestFunctionalThrottleIOPS: reads and writes past the page cache take the time that quota:disk_*_iops_sec leaves them, in the
// directions that are limited and in no other.
func TestFunctionalThrottleIOPS(t *testing.T) {
	const (
		limit, requests = 100, 300
		// The kernel lets a tenth of a second's requests through at once.
		least = 0.8 * requests / limit
	)
	for name, c := range map[string]struct {
		limits      flavor.DiskLimits
		read, write bool
	}{
		"read":  {flavor.DiskLimits{ReadIOPSSec: limit}, true, false},
		"write": {flavor.DiskLimits{WriteIOPSSec: limit}, false, true},
		"total": {flavor.DiskLimits{TotalIOPSSec: limit}, true, true},
		"none":  {flavor.DiskLimits{TotalBytesSec: 1 << 30}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, spec, rootfs := throttledGuest(t, c.limits)
			file := filepath.Join(rootfs, "data")
			f, err := os.Create(file)
			require.NoError(t, err)
			_, err = f.Write(make([]byte, requests*4096))
			require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
			require.NoError(t, os.Chown(file, int(spec.IDs.Base), int(spec.IDs.Base)))
			for _, way := range []struct {
				name, line string
				limited    bool
			}{
				{"read", "dd if=/data of=/dev/null iflag=direct", c.read},
				{"write", "dd if=/dev/zero of=/data oflag=direct conv=notrunc", c.write},
			} {
				measure := func() float64 {
					begin := time.Now()
					out := run(t, d, spec.UUID, way.line+" bs=4k 2>&1 count="+strconv.Itoa(requests)+" && echo done")
					elapsed := time.Since(begin).Seconds()
					t.Logf("%s: %d requests in %.2f s, %.0f a second of %d", way.name, requests, elapsed, requests/elapsed, limit)
					require.Contains(t, out, fmt.Sprintf("%d+0 records out", requests))
					require.Contains(t, out, "done")
					return elapsed
				}
				if way.limited {
					require.Greater(t, measure(), least, way.name)
					continue
				}
				// Whatever else the machine does makes it slower, though not each time.
				require.Less(t, min(measure(), measure(), measure()), least, "%s is not limited", way.name)
			}
			if c.write {
				requireFreed(t, d, spec.UUID, rootfs, "write_iops")
			}
		})
	}
}

// TestFunctionalBinds: a directory of the host is where it is asked for, also behind a link, over restarts.
func TestFunctionalBinds(t *testing.T) {
	d := newDriver(t)
	spec, rootfs := newSpec(t)
	one, two := testDir(t), testDir(t)
	for _, dir := range []string{one, two} {
		require.NoError(t, os.Chown(dir, int(spec.IDs.Base), int(spec.IDs.Base)))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(rootfs, "var/data"), 0o755))
	require.NoError(t, os.Symlink("/var/data", filepath.Join(rootfs, "mnt")))
	spec.Binds = []driver.Bind{{Source: one, Target: "mnt"}, {Source: two, Target: "mnt/ephemeral1"}}
	require.NoError(t, d.Create(t.Context(), spec, rootfs))
	for range 2 {
		require.NoError(t, d.Start(t.Context(), spec.UUID, nil))
		run(t, d, spec.UUID, "echo one >> /mnt/file && echo two >> /mnt/ephemeral1/file && chown 1000 /mnt/file")
		require.NoError(t, d.Stop(t.Context(), spec.UUID, 0, 0))
	}
	for dir, want := range map[string]string{one: "one\none\n", two: "two\ntwo\n"} {
		got, err := os.ReadFile(filepath.Join(dir, "file"))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.NoFileExists(t, filepath.Join(rootfs, "var/data/file"))
}
