package resource

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/openstack/placement/placementtest"
)

func inventory(total, reserved int, ratio float64) placement.Inventory {
	return placement.Inventory{Total: total, Reserved: reserved, MinUnit: 1, MaxUnit: total, StepSize: 1, AllocationRatio: ratio}
}

func TestInventories(t *testing.T) {
	t.Parallel()
	ratio := func(r float64) *float64 { return &r }
	for _, c := range []struct {
		name    string
		change  func(*Options)
		current placement.Inventories
		disk    uint64 // GiB; 0: 100
		want    placement.Inventories
	}{
		{"initial ratios", nil, nil, 0, placement.Inventories{
			"VCPU": inventory(4, 0, 4), "MEMORY_MB": inventory(8192, 512, 1), "DISK_GB": inventory(100, 2, 1),
		}},
		{
			"ratios of the configuration", func(o *Options) { o.CPURatio, o.RAMRatio, o.DiskRatio = ratio(2), ratio(1.5), ratio(0) },
			placement.Inventories{"VCPU": inventory(4, 0, 9)},
			0,
			placement.Inventories{
				"VCPU": inventory(4, 0, 2), "MEMORY_MB": inventory(8192, 512, 1.5), "DISK_GB": inventory(100, 2, 1),
			},
		},
		{"ratios of an operator in placement", nil, placement.Inventories{"VCPU": inventory(2, 0, 9), "DISK_GB": inventory(1, 0, 1.2)}, 0, placement.Inventories{
			"VCPU": inventory(4, 0, 9), "MEMORY_MB": inventory(8192, 512, 1), "DISK_GB": inventory(100, 2, 1.2),
		}},
		{"others' classes stay", nil, placement.Inventories{"CUSTOM_GOLD": inventory(1, 0, 1)}, 0, placement.Inventories{
			"VCPU": inventory(4, 0, 4), "MEMORY_MB": inventory(8192, 512, 1), "DISK_GB": inventory(100, 2, 1), "CUSTOM_GOLD": inventory(1, 0, 1),
		}},
		{"more reserved than there is", func(o *Options) { o.ReservedMemoryMB, o.ReservedCPUs, o.ReservedDiskMB = 1<<20, 9, 1<<30 }, nil, 0, placement.Inventories{
			"VCPU": inventory(4, 4, 4), "MEMORY_MB": inventory(8192, 8192, 1), "DISK_GB": inventory(100, 100, 1),
		}},
		{"shared CPUs", func(o *Options) { o.CPUs = 3 }, nil, 0, placement.Inventories{
			"VCPU": inventory(3, 0, 4), "MEMORY_MB": inventory(8192, 512, 1), "DISK_GB": inventory(100, 2, 1),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, "2024.1", c.change)
			f.placement.SetProvider(nodeUUID, placementtest.Provider{Name: testNode, Inventories: c.current})
			write(t, f.opts.StatePath, nodeUUID)
			require.NoError(t, f.Start(t.Context(), 7))
			p, _ := f.placement.Provider(nodeUUID)
			require.Empty(t, cmp.Diff(c.want, p.Inventories))
		})
	}
}

func TestEmptyClassIsLeftOut(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	f.disk.Total = gib / 2
	require.NoError(t, f.Audit(t.Context()))
	p, _ := f.placement.Provider(f.ProviderUUID())
	require.NotContains(t, p.Inventories, "DISK_GB", "placement refuses a total of zero")
}

func TestTraits(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "zed", nil)
	write(t, f.opts.StatePath, nodeUUID)
	f.placement.SetProvider(nodeUUID, placementtest.Provider{Name: testNode, Traits: []string{
		"CUSTOM_RACK_7", "HW_CPU_X86_AVX2", // an operator's and a driver's: kept
		"COMPUTE_VOLUME_EXTEND", "COMPUTE_IMAGE_TYPE_QCOW2", traitStatusDisabled, // claims that are not true: removed
	}})
	require.NoError(t, f.Start(t.Context(), 7))
	kept := []string{
		"COMPUTE_DEVICE_TAGGING", "COMPUTE_IMAGE_TYPE_RAW", traitAttachInterface, "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG",
		traitComputeNode, "COMPUTE_TRUSTED_CERTS", "CUSTOM_RACK_7", "HW_CPU_X86_AVX2",
	}
	p, _ := f.placement.Provider(nodeUUID)
	require.Equal(t, kept, p.Traits)

	// A service that is disabled by the API, at once and by an audit.
	require.NoError(t, f.SetEnabled(t.Context(), false))
	p, _ = f.placement.Provider(nodeUUID)
	require.Contains(t, p.Traits, traitStatusDisabled)
	require.NoError(t, f.SetEnabled(t.Context(), true))
	p, _ = f.placement.Provider(nodeUUID)
	require.Equal(t, kept, p.Traits)
	f.nova.SetService(map[string]any{"disabled": true})
	require.NoError(t, f.Audit(t.Context()))
	p, _ = f.placement.Provider(nodeUUID)
	require.Contains(t, p.Traits, traitStatusDisabled)
}

func TestOwnerTrait(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"2026.1": false, "2026.2": true} {
		f := started(t, name, nil)
		p, _ := f.placement.Provider(f.ProviderUUID())
		require.Equal(t, want, slices.Contains(p.Traits, traitOwnerNova), name)
	}
}

// TestEnabledDuringAnAudit: an audit that read the service before the API changed it must
// not take the change back.
func TestEnabledDuringAnAudit(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", nil)
	f.nova.On("MigrationList.get_in_progress_and_error", func() {
		if err := f.SetEnabled(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
	require.NoError(t, f.Audit(t.Context()))
	p, _ := f.placement.Provider(f.ProviderUUID())
	require.Contains(t, p.Traits, traitStatusDisabled)
}

func TestProviderConflicts(t *testing.T) {
	t.Parallel()
	f := started(t, "2023.1", nil)
	f.placement.Conflict(maxConflicts - 1)
	f.host.MemoryMB = 9000
	require.NoError(t, f.Audit(t.Context()), "others' changes are read and the update repeated")
	p, _ := f.placement.Provider(f.ProviderUUID())
	require.Equal(t, 9000, p.Inventories["MEMORY_MB"].Total)

	f.placement.Conflict(maxConflicts)
	f.host.MemoryMB = 9001
	require.ErrorIs(t, f.Audit(t.Context()), placement.ErrConflict)
	require.NoError(t, f.Audit(t.Context()), "the next audit succeeds")
	p, _ = f.placement.Provider(f.ProviderUUID())
	require.Equal(t, 9001, p.Inventories["MEMORY_MB"].Total)
}

func TestProviderComesBack(t *testing.T) {
	t.Parallel()
	f := started(t, "2023.1", nil)
	f.placement.RemoveProvider(f.ProviderUUID())
	f.host.MemoryMB = 9000
	require.NoError(t, f.Audit(t.Context()))
	p, ok := f.placement.Provider(f.ProviderUUID())
	require.True(t, ok)
	require.Len(t, p.Inventories, 3)
}

func TestProviderRefresh(t *testing.T) {
	t.Parallel()
	f := started(t, "2023.1", func(o *Options) { o.ProviderRefresh = time.Nanosecond })
	for began := time.Now(); time.Since(began) < f.opts.ProviderRefresh; { // a clock may stand still for a while
	}
	require.NoError(t, f.Audit(t.Context()))
	require.Contains(t, f.placement.Log(), "GET /resource_providers/"+f.ProviderUUID()+"/inventories", "what is old is read again")

	f = started(t, "2023.1", func(o *Options) { o.ProviderRefresh = time.Hour })
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, []string{"GET /resource_providers/" + f.ProviderUUID() + "/allocations"}, f.placement.Log(), "an idle audit changes nothing")
}

func TestPlacementIsDown(t *testing.T) {
	t.Parallel()
	f := started(t, "2023.1", nil)
	f.placement.SetDown(true)
	require.NoError(t, f.Audit(t.Context()), "nothing to tell Placement")
	f.host.MemoryMB = 9000
	require.Error(t, f.Audit(t.Context()))
	require.Error(t, f.SetEnabled(t.Context(), false))
	// Claims are Placement's only through the scheduler: a build goes on.
	require.NoError(t, f.Claim(t.Context(), instance("a", 1, 64)))
	require.Equal(t, []string{"a"}, f.Instances())
	f.placement.SetDown(false)
	f.server("a", 1, 64, 1, nil)
	require.NoError(t, f.Audit(t.Context()))
}

func TestProviderTurn(t *testing.T) {
	t.Parallel()
	f := started(t, "2023.1", nil)
	leave, err := f.provider.turn.enter(t.Context())
	require.NoError(t, err)
	ctx, cancel := contextEnding(t)
	defer cancel()
	require.Error(t, f.SetEnabled(ctx, false), "a wait for another synchronisation ends with the context")
	leave()
	require.NoError(t, f.SetEnabled(t.Context(), false))
}

func TestDeadAllocations(t *testing.T) {
	t.Parallel()
	f := started(t, "2023.1", nil)
	uuid := f.ProviderUUID()
	f.server("here", 1, 64, 1, nil)
	f.server("deleted", 1, 64, 1, map[string]any{"deleted": true})
	f.server("hidden", 1, 64, 1, map[string]any{"deleted": true, "hidden": true})
	f.server("elsewhere", 1, 64, 1, map[string]any{"host": "other"})
	f.nova.AddMigration(novatest.Fields{"id": novatest.Raw(1), "uuid": novatest.Raw("moving"), "instance_uuid": novatest.Raw("elsewhere")})
	for _, consumer := range []string{"here", "deleted", "hidden", "elsewhere", "moving", "unknown"} {
		f.placement.Allocate(consumer, uuid, placement.Resources{"VCPU": 1})
	}
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, []string{"elsewhere", "here", "hidden", "moving", "unknown"}, f.placement.Consumers())

	// One that cannot be looked up does not keep the others' from being removed.
	f.server("deleted2", 1, 64, 1, map[string]any{"deleted": true})
	f.placement.Allocate("deleted2", uuid, placement.Resources{"VCPU": 1})
	f.nova.Fail("Instance.get_by_uuid", novatest.Failure("DBError"))
	require.NoError(t, f.Audit(t.Context()), "and does not make the books wrong")
	require.NoError(t, f.Audit(t.Context()))
	require.False(t, slices.ContainsFunc(f.placement.Consumers(), func(c string) bool { return strings.HasPrefix(c, "deleted") }))
}
