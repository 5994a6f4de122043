//go:build functional

package functional

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// reportCount is how often the service has reported.
func reportCount(t *testing.T) int {
	t.Helper()
	count, err := shared.Reports(within(t, 10*time.Second), shared.Host)
	require.NoError(t, err)
	return count
}

func TestServiceStopsAndStarts(t *testing.T) {
	require.NoError(t, shared.Agent.Signal(within(t, 30*time.Second), syscall.SIGTERM), "SIGTERM ends the agent with status 0")
	before := reportCount(t)
	require.NoError(t, shared.Agent.Start())
	took := eventually(t, 30*time.Second, "service up", func(ctx context.Context) (bool, error) {
		services, err := shared.Admin.ComputeServices(ctx, "nova-compute")
		for _, s := range services {
			if s.Host == shared.Host {
				return s.State == "up" && reportCount(t) > before, err
			}
		}
		return false, err
	})
	require.Less(t, took, 9*time.Second, "not only after report_interval")

	first := reportCount(t)
	took = eventually(t, 25*time.Second, "two more reports", func(context.Context) (bool, error) {
		return reportCount(t) >= first+2, nil
	})
	require.Less(t, took, 40*time.Second, "every report_interval")
}

// TestDoctor: a node whose agent serves lacks nothing; one whose seccomp profile is not there does.
func TestDoctor(t *testing.T) {
	out, err := shared.Agent.Command(within(t, 10*time.Second), "doctor").CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	require.Regexp(t, `(?m)^ok +control groups$`, string(out))
	require.NotRegexp(t, `(?m)^failed`, string(out))

	file := filepath.Join(t.TempDir(), "seccomp.conf")
	require.NoError(t, os.WriteFile(file, []byte("[lxc]\nseccomp_profile = /nowhere\n"), 0o600))
	out, err = shared.Agent.Command(within(t, 10*time.Second), "doctor", "--config-file", file).CombinedOutput()
	require.Errorf(t, err, "%s", out)
	require.Regexp(t, `(?m)^failed +seccomp$`, string(out))
}

func TestHypervisorFiguresAreTheMachines(t *testing.T) {
	ctx := within(t, 30*time.Second)
	var found *cloud.Hypervisor
	hypervisors, err := shared.Admin.Hypervisors(ctx)
	require.NoError(t, err)
	for i := range hypervisors {
		if hypervisors[i].Service.Host == shared.Host {
			found = &hypervisors[i]
		}
	}
	require.NotNil(t, found, "no hypervisor on %s", shared.Host)
	memory := memoryMB(t)
	disk := diskGB(t, shared.Agent.StateDir())
	require.Equal(t, "up", found.State)
	require.Equal(t, runtime.NumCPU(), found.VCPUs)
	require.Equal(t, memory, found.MemoryMB)
	require.Equal(t, disk, found.LocalGB)
	require.NotEmpty(t, found.Type)

	_, inventories, err := shared.Admin.Provider(ctx, found.Hostname)
	require.NoError(t, err)
	require.Equal(t, runtime.NumCPU(), inventories["VCPU"].Total)
	require.Equal(t, memory, inventories["MEMORY_MB"].Total)
	require.Equal(t, disk, inventories["DISK_GB"].Total)
	for class, inventory := range inventories {
		t.Logf("%s: %+v", class, inventory)
	}
}

func memoryMB(t *testing.T) int {
	t.Helper()
	file, err := os.Open("/proc/meminfo")
	require.NoError(t, err)
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kb int
		if _, err := fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &kb); err == nil {
			return kb / 1024
		}
	}
	require.Fail(t, "no MemTotal")
	return 0
}

func diskGB(t *testing.T, dir string) int {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	return int(fs.Blocks * uint64(fs.Bsize) >> 30)
}
