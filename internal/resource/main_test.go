package resource

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/openstack/placement/placementtest"
	"github.com/compute-agent/compute-agent/internal/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testHost = "node1"
	testNode = "node1.example.org"
	nodeUUID = "a1b2c3d4-0000-4000-8000-000000000001"
)

// fixture is a tracker with the services around it.
type fixture struct {
	*Tracker

	nova      *novatest.Conductor
	placement *placementtest.Fake
	opts      Options
	deps      Deps
	host      hostinfo.Info
	disk      storage.Usage
	pools     map[string]storage.Usage
}

// standardTraits are those that a Placement of today knows and that matter here.
func standardTraits() []string {
	known := []string{traitComputeNode, traitStatusDisabled, traitOwnerNova, "HW_CPU_X86_AVX2"}
	for name := range ownTraits {
		known = append(known, name)
	}
	return known
}

// newFixture returns a tracker that was not started, on a host of 4 CPUs, 8 GiB and 100 GiB.
func newFixture(t testing.TB, releaseName string, change func(*Options)) *fixture {
	t.Helper()
	r, err := release.ByName(releaseName)
	require.NoError(t, err)
	f := &fixture{
		nova: novatest.New(), placement: placementtest.New(standardTraits()...),
		host: hostinfo.Info{CPUs: 4, MemoryMB: 8192, Arch: "x86_64", Uptime: "12:00:00 up 1 day"},
		disk: storage.Usage{Total: 100 * gib, Free: 60 * gib}, pools: map[string]storage.Usage{"fast": {Total: 20 * gib}, "slow_2": {Total: 500 * gib}},
	}
	f.nova.AddService(novatest.Fields{"id": novatest.Raw(7), "host": novatest.Raw(testHost), "disabled": novatest.Raw(false)})
	dir := t.TempDir()
	f.opts = Options{
		Host: testHost, HostIP: "192.0.2.7", NodeName: testNode, StatePath: dir, IdentityDirs: []string{dir},
		HypervisorType: "lxc", HypervisorVersion: 5000002, ReservedMemoryMB: 512, ReservedDiskMB: 1500,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, CountFailedBuilds: true,
	}
	if change != nil {
		change(&f.opts)
	}
	cloud := ostest.NewFake(t, map[string]http.Handler{"placement": f.placement})
	f.deps = Deps{
		Release: r, Conductor: conductor.New(f.nova, r), Placement: placement.New(cloud.Service("placement", "placement", "")),
		HostInfo: func(context.Context) (hostinfo.Info, error) { return f.host, nil },
		Disk:     func(context.Context) (storage.Usage, error) { return f.disk, nil },
		PoolUsage: func(_ context.Context, name string) (storage.Usage, error) {
			usage, ok := f.pools[name]
			if !ok {
				return usage, storage.ErrNoPool
			}
			return usage, nil
		},
	}
	f.Tracker = New(f.opts, f.deps)
	return f
}

// started returns a tracker after its first audit.
func started(t testing.TB, releaseName string, change func(*Options)) *fixture {
	t.Helper()
	f := newFixture(t, releaseName, change)
	require.NoError(t, f.Start(t.Context(), 7))
	f.nova.ClearLog()
	f.placement.ClearLog()
	return f
}

// again returns a new tracker of the same host, as after a restart of the agent.
func (f *fixture) again() *Tracker { return New(f.opts, f.deps) }

// server stores a row of an instance on the host.
func (f *fixture) server(uuid string, vcpus, memoryMB, rootGB int, changes map[string]any) {
	flavor := novatest.Object("Flavor", novatest.Fields{
		"vcpus": novatest.Raw(vcpus), "memory_mb": novatest.Raw(memoryMB), "root_gb": novatest.Raw(rootGB),
		"ephemeral_gb": novatest.Raw(0), "swap": novatest.Raw(0),
	})
	fields := novatest.Fields{
		"id": novatest.Raw(1), "uuid": novatest.Raw(uuid), "host": novatest.Raw(testHost), "node": novatest.Raw(testNode),
		"project_id": novatest.Raw("p1"), "image_ref": novatest.Raw("image"), "vm_state": novatest.Raw("active"),
		"task_state": novatest.Raw(nil), "os_type": novatest.Raw(nil), "deleted": novatest.Raw(false), "hidden": novatest.Raw(false), "flavor": flavor,
	}
	for name, value := range changes {
		fields[name] = novatest.Raw(value)
	}
	f.nova.SetInstance(fields)
}

func (f *fixture) number(t testing.TB, field string) string {
	t.Helper()
	return string(f.nova.Node(f.ProviderUUID())[field])
}
