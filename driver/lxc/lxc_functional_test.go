//go:build functional

package lxc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/driver/drivertest"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// testIDs is where the tests' id ranges begin, far from those of a real agent.
const testIDs = 900_000_000

// sequence numbers the guests of this process, for names and id ranges.
var sequence atomic.Uint32

// testDir is a directory that a guest's ids can walk down to, unlike t.TempDir.
func testDir(t *testing.T) string {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	dir, err := os.MkdirTemp("/var/tmp", "lxc-driver-") //nolint:usetesting // guests pass through its parents
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// newDriver returns a driver in a directory of its own. At the end of the test
// everything must be gone: guests, cgroups, mounts.
func newDriver(t *testing.T, change ...func(*Options)) *Driver {
	t.Helper()
	dir := testDir(t)
	o := Options{StateDir: filepath.Join(dir, "state"), LogDir: filepath.Join(dir, "log"), ConsoleSize: 16 << 10}
	for _, c := range change {
		c(&o)
	}
	d, err := New(o)
	require.NoError(t, err)
	for _, check := range d.Checks(t.Context()) {
		for _, p := range check.Problems {
			functest.Need(t, !p.Fatal, fmt.Sprintf("a host without this: %s (%s)", p.What, p.Remedy))
		}
	}
	t.Cleanup(func() { clean(t, d) })
	return d
}

func clean(t *testing.T, d *Driver) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	specs, err := d.List(ctx)
	require.NoError(t, err)
	for _, s := range specs {
		if t.Failed() {
			log, _ := os.ReadFile(d.logFile(s.Name))
			console, _ := d.ConsoleLog(ctx, s.UUID, 2000)
			t.Logf("%s lxc.log:\n%s\nconsole:\n%s", s.Name, log, console)
		}
		require.NoError(t, d.Destroy(ctx, s.UUID))
		requireClean(t, d, s.Name)
	}
}

// requireClean confirms that a stopped guest left nothing on the host.
func requireClean(t *testing.T, d *Driver, name string) {
	t.Helper()
	for _, base := range d.cgroups.dirs {
		for _, group := range []string{payload(name), monitor(name)} {
			require.NoDirExists(t, filepath.Join(base, group))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), d.o.StateDir)
}

// newSpec makes a busybox guest with sensible limits.
func newSpec(t *testing.T) (driver.Spec, string) {
	t.Helper()
	n := sequence.Add(1)
	ids := storage.IDRange{Base: testIDs + (n%1000)*65536, Size: 65536}
	rootfs := testDir(t)
	require.NoError(t, os.Chmod(rootfs, 0o755))
	drivertest.BusyboxRootFS(t, rootfs, ids)
	return driver.Spec{
		UUID: uuid.NewString(), Name: fmt.Sprintf("ca-test-%d-%d", os.Getpid(), n), Hostname: "guest", Arch: "x86_64", IDs: ids,
		Limits: flavor.Limits{
			MemoryBytes: 128 << 20, SwapBytes: 64 << 20, PIDs: 200, CPUPeriodUS: 100000, CPUQuotaUS: 50000, CPUShares: 512,
		},
	}, rootfs
}

func harness() drivertest.Harness {
	inside := func(t *testing.T, d driver.Driver, uuid string, args ...string) {
		t.Helper()
		_, _ = d.Exec(t.Context(), uuid, driver.Command{Args: args}) // it is killed with its guest
	}
	return drivertest.Harness{
		New:  func(t *testing.T) driver.Driver { t.Helper(); return newDriver(t) },
		Spec: func(t *testing.T, _ int) (driver.Spec, string) { t.Helper(); return newSpec(t) },
		PowerOff: func(t *testing.T, d driver.Driver, uuid string) {
			t.Helper()
			inside(t, d, uuid, "poweroff", "-f")
		},
		Reboot: func(t *testing.T, d driver.Driver, uuid string) {
			t.Helper()
			inside(t, d, uuid, "reboot", "-f")
		},
		Deafen: func(t *testing.T, d driver.Driver, uuid string) {
			t.Helper()
			info, err := d.Info(t.Context(), uuid)
			require.NoError(t, err)
			require.NoError(t, unix.Kill(info.InitPID, unix.SIGSTOP))
		},
		NIC: func(t *testing.T, name string) driver.NIC {
			t.Helper()
			return newNIC(t, name)
		},
		Unplug: func(t *testing.T, _ driver.Driver, _ string, nic driver.NIC) {
			t.Helper()
			ip(t, "link", "del", nic.Link.Host)
		},
		Interfaces: func(t *testing.T, d driver.Driver, uuid string) []string {
			t.Helper()
			return strings.Fields(run(t, d.(*Driver), uuid, "cd /sys/class/net && echo eth*"))
		},
		Reopen: func(t *testing.T, d driver.Driver) driver.Driver {
			t.Helper()
			again, err := New(d.(*Driver).o)
			require.NoError(t, err)
			return again
		},
	}
}

func TestFunctionalConformance(t *testing.T) { drivertest.Run(t, harness()) }

// run executes a shell line inside and returns its output.
func run(t *testing.T, d *Driver, uuid, line string) string {
	t.Helper()
	var out strings.Builder
	_, err := d.Exec(t.Context(), uuid, driver.Command{Args: []string{"sh", "-c", line}, Stdout: &out, Stderr: &out})
	require.NoError(t, err)
	return strings.TrimSpace(out.String())
}

// started makes and starts a guest, and waits for its init to be through.
func started(t *testing.T, d *Driver, nics []driver.NIC, change ...func(*driver.Spec)) driver.Spec {
	t.Helper()
	spec, rootfs := newSpec(t)
	for _, c := range change {
		c(&spec)
	}
	require.NoError(t, d.Create(t.Context(), spec, rootfs))
	require.NoError(t, d.Start(t.Context(), spec.UUID, nics))
	require.Eventually(t, func() bool {
		log, err := d.ConsoleLog(t.Context(), spec.UUID, 4096)
		return err == nil && strings.Contains(string(log), drivertest.BootLine)
	}, time.Minute, 10*time.Millisecond)
	return spec
}
