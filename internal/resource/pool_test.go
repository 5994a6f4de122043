package resource

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/openstack/placement/placementtest"
	"github.com/compute-agent/compute-agent/internal/storage"
)

const (
	fastClass = "CUSTOM_LXC_POOL_FAST"
	slowClass = "CUSTOM_LXC_POOL_SLOW_2"
)

// pools are two storage pools of the host.
func pools(o *Options) { o.Pools = []Pool{{Name: "fast"}, {Name: "slow_2", ReservedGB: 7}} }

// poolsOf are the inventories of the pools that Placement has.
func (f *fixture) poolsOf(t testing.TB) placement.Inventories {
	t.Helper()
	p, ok := f.placement.Provider(f.ProviderUUID())
	require.True(t, ok)
	for _, class := range []string{"VCPU", "MEMORY_MB", "DISK_GB"} {
		require.Contains(t, p.Inventories, class)
		delete(p.Inventories, class)
	}
	return p.Inventories
}

// TestPoolInventories: each pool is a class of its own, which is made first; the default pool's is DISK_GB as ever.
func TestPoolInventories(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", pools)
	require.Empty(t, cmp.Diff(placement.Inventories{fastClass: inventory(20, 0, 1), slowClass: inventory(500, 7, 1)}, f.poolsOf(t)))
	p, _ := f.placement.Provider(f.ProviderUUID())
	require.Equal(t, inventory(100, 2, 1), p.Inventories["DISK_GB"])
	f.pools["fast"] = storage.Usage{Total: 30 * gib}
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, inventory(30, 0, 1), f.poolsOf(t)[fastClass], "a pool may grow")
	f.placement.ClearLog()
	require.NoError(t, f.Audit(t.Context()))
	for _, call := range f.placement.Log() {
		require.NotContains(t, call, "PUT", "nothing has changed")
	}
	delete(f.pools, "fast")
	require.ErrorIs(t, f.Audit(t.Context()), storage.ErrNoPool)
}

// TestPoolRatio: the disk's ratios are the pools' too, and an operator's in Placement stays.
func TestPoolRatio(t *testing.T) {
	t.Parallel()
	ratio := 1.5
	f := started(t, "2024.1", func(o *Options) { pools(o); o.DiskRatio = &ratio })
	require.InDelta(t, ratio, f.poolsOf(t)[fastClass].AllocationRatio, 0)

	f = newFixture(t, "2024.1", pools)
	write(t, f.opts.StatePath, nodeUUID)
	f.placement.SetProvider(nodeUUID, placementtest.Provider{Name: testNode, Inventories: placement.Inventories{fastClass: inventory(1, 0, 3)}})
	require.NoError(t, f.Start(t.Context(), 7))
	require.Empty(t, cmp.Diff(inventory(20, 0, 3), f.poolsOf(t)[fastClass]))
}

// TestFormerPool: a pool that the configuration names no more goes; while servers hold some of it, nobody gets the rest.
func TestFormerPool(t *testing.T) {
	t.Parallel()
	f := started(t, "zed", pools)
	f.placement.Allocate("consumer", f.ProviderUUID(), placement.Resources{fastClass: 5})
	f.opts.Pools = nil
	f.Tracker = f.again()
	require.NoError(t, f.Start(t.Context(), 7))
	require.Empty(t, cmp.Diff(placement.Inventories{fastClass: inventory(20, 20, 1), slowClass: inventory(500, 500, 1)}, f.poolsOf(t)))
	f.placement.Allocate("consumer", f.ProviderUUID(), placement.Resources{"VCPU": 1})
	require.NoError(t, f.Audit(t.Context()))
	require.Empty(t, f.poolsOf(t))
}

// TestPoolUsage: what is in another pool is not counted as used of the default one, whoever chose that pool, and
// whether the instance is claimed or found by an audit.
func TestPoolUsage(t *testing.T) {
	t.Parallel()
	text := func(s string) *string { return &s }
	fast := &object.Flavor{VCPUs: 1, MemoryMB: 64, RootGB: 10, EphemeralGB: 3, ExtraSpecs: map[string]string{"lxc:pool": "fast"}}
	back := &object.Flavor{RootGB: 10, ExtraSpecs: map[string]string{"lxc:pool": "default"}}
	byImage := map[string]*string{"image_lxc_pool": text("fast")}
	for _, c := range []struct {
		name string
		inst *object.Instance
		f    *object.Flavor
		want int
	}{
		{"flavor", &object.Instance{ImageRef: "i"}, fast, 3},
		{"image", &object.Instance{ImageRef: "i", SystemMetadata: byImage}, &object.Flavor{RootGB: 10}, 0},
		{"flavor against image", &object.Instance{ImageRef: "i", SystemMetadata: byImage}, back, 10},
	} {
		require.Equal(t, c.want, usageOf(c.inst, c.f).diskGB, c.name)
	}

	f := started(t, "zed", pools)
	require.NoError(t, f.Claim(t.Context(), &object.Instance{UUID: "a", ImageRef: "i", Flavor: fast}))
	require.Equal(t, "4", f.number(t, "local_gb_used"), "1 GB is reserved")
	f.server("b", 1, 64, 40, map[string]any{"system_metadata": novatest.Raw(map[string]string{"image_lxc_pool": "fast"})})
	f.server("c", 1, 64, 5, nil)
	require.NoError(t, f.Audit(t.Context()))
	require.Equal(t, "6", f.number(t, "local_gb_used"))
	require.Equal(t, []string{"b", "c"}, f.Instances())
}
