package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver/fake"
	"github.com/compute-agent/compute-agent/internal/compute"
	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/control"
	"github.com/compute-agent/compute-agent/internal/resource"
)

// fakeConfig is the configuration of a fake host, and the file that it is in.
func fakeConfig(t *testing.T, driver string) (*config.Config, string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.conf")
	require.NoError(t, os.WriteFile(file, []byte("[DEFAULT]\ncompute_driver = "+driver+"\nstate_path = "+dir+"\n[lxc]\ninstances_dir = /proc/nowhere\nstorage_backend = btrfs\n"), 0o600))
	c, _, err := config.Load(config.Sources{Files: []string{"../../config/testdata/nova.conf", file}, Dirs: []string{dir}})
	require.NoError(t, err)
	return c, file
}

func TestOpenFakeHost(t *testing.T) {
	t.Parallel()
	c, _ := fakeConfig(t, "fake.SmallFakeDriver")
	h, err := openHost(t.Context(), c)
	require.NoError(t, err)
	kind, version := h.driver.Version()
	require.Equal(t, "fake", kind)
	require.Equal(t, 1000, version)
	info, err := h.measure(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int{2, 8192}, []int{info.CPUs, info.MemoryMB})
	require.NotEmpty(t, info.Uptime, "the machine's")
	usage, err := h.roots.Usage(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(1028<<30), usage.Total)
	require.Empty(t, h.runners)
	require.Equal(t, []resource.GuestKind{{HVType: "fake", VMMode: "hvm"}}, h.trackerOptions(resource.Options{CPUs: 1}).Guests)
	require.Zero(t, h.trackerOptions(resource.Options{CPUs: 1}).CPUs)
	require.Zero(t, h.managerOptions(compute.Options{VIFPluggingTimeout: 300}).VIFPluggingTimeout)
	require.Zero(t, h.managerOptions(compute.Options{Injection: inject.Settings{Enabled: true}}).Injection, "all servers have one directory as their root")
	_, err = h.control.List(t.Context())
	require.ErrorIs(t, err, errFake)

	_, err = openHost(t.Context(), c)
	require.Error(t, err, "another agent has it")
	h.close()
	h, err = openHost(t.Context(), c)
	require.NoError(t, err)
	h.close()
	made, err := filepath.Glob(filepath.Join(c.LXC.StateDir, "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(c.LXC.StateDir, "agent.db"), filepath.Join(c.LXC.StateDir, "empty-image")}, made)
}

// TestStateOfAnotherDriver: a driver that does not know the other's guests would take them for lost.
func TestStateOfAnotherDriver(t *testing.T) {
	t.Parallel()
	c, _ := fakeConfig(t, "fake.FakeDriver")
	require.NoError(t, os.MkdirAll(c.LXC.StateDir, 0o700))
	containers := &host{driver: lxcByName{fake.New()}}
	require.NoError(t, containers.openState(c))
	containers.close()
	_, err := openHost(t.Context(), c)
	require.ErrorContains(t, err, "has the servers of the driver lxc, and [DEFAULT] compute_driver asks for fake")

	c, _ = fakeConfig(t, "fake.FakeDriver")
	require.NoError(t, os.MkdirAll(c.LXC.StateDir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(c.LXC.StateDir, "agent.db"), nil, 0o600)) // of an agent that did not know of this
	_, err = openHost(t.Context(), c)
	require.ErrorContains(t, err, "the driver lxc")
	require.NoError(t, containers.openState(c))
	containers.close()
}

// lxcByName is a driver that says it is the one of containers.
type lxcByName struct{ *fake.Driver }

func (lxcByName) Version() (name string, version int) { return "lxc", 5000002 }

func TestCommandsOnAFakeHost(t *testing.T) {
	t.Parallel()
	c, file := fakeConfig(t, "fake.FakeDriver")
	_, err := openGuests(c)
	require.ErrorIs(t, err, errFake)
	images, err := openImages(t.Context(), c)
	require.NoError(t, err)
	for _, ask := range []func() error{
		func() error { _, err := images.List(t.Context()); return err },
		func() error { _, err := images.Import(t.Context(), control.ImportOptions{}, nil); return err },
		func() error { return images.Remove(t.Context(), "id") },
		func() error { _, err := images.Prune(t.Context(), control.PruneOptions{}); return err },
		func() error { _, err := images.Hold(t.Context(), "id"); return err },
	} {
		require.ErrorIs(t, ask(), errFake)
	}
	require.NoError(t, images.Close())

	files := []string{"--config-file", "../../config/testdata/nova.conf", "--config-file", file}
	shutdown := newShutdownCommand()
	shutdown.SetArgs(files)
	require.NoError(t, shutdown.ExecuteContext(t.Context()))
	out, err := runDoctor(t, files...)
	require.NoError(t, err, out)
	require.Contains(t, out, "warning  containers\n         fake.FakeDriver starts none")
	require.NotContains(t, out, "btrfs")
	out, err = runConfig(t, append([]string{"check"}, files...)...)
	require.NoError(t, err, out)
	require.Regexp(t, `(?m)^driver +fake.FakeDriver: no server is started; reports 1000 vCPUs, 800000 MiB, 600000 GB$`, out)
	require.NotContains(t, out, "btrfs file system")
}
