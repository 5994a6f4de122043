package resource

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// poolClass begins the names of the resource classes of storage pools. A flavor that names a pool asks
// Placement for resources of its class instead of DISK_GB.
const poolClass = "CUSTOM_LXC_POOL_"

// Pool is a storage pool beside the default one.
type Pool struct {
	Name       string // as flavors name it: lower case
	ReservedGB int    // of its size, not for servers
}

func (p Pool) class() string { return poolClass + strings.ToUpper(p.Name) }

// measurePools reads the sizes of the pools.
func (t *Tracker) measurePools(ctx context.Context) (map[string]storage.Usage, error) {
	pools := make(map[string]storage.Usage, len(t.opts.Pools))
	for _, p := range t.opts.Pools {
		usage, err := t.deps.PoolUsage(ctx, p.Name)
		if err != nil {
			return nil, fmt.Errorf("read size of storage pool %s: %w", p.Name, err)
		}
		pools[p.Name] = usage
	}
	return pools, nil
}

// attributes are what is loaded of instances to count them: with pools also what their images say.
func (t *Tracker) attributes(names ...string) []string {
	if len(t.opts.Pools) > 0 {
		names = append(names, "system_metadata")
	}
	return names
}

// formerPools are the classes of pools that this host had.
func (t *Tracker) formerPools(inv placement.Inventories) []string {
	var former []string
	for class := range maps.Keys(inv) {
		if strings.HasPrefix(class, poolClass) && !slices.ContainsFunc(t.opts.Pools, func(p Pool) bool { return p.class() == class }) {
			former = append(former, class)
		}
	}
	return former
}

// dropFormerPools takes pools that this host had out of its inventories.
func (t *Tracker) dropFormerPools(inv placement.Inventories) {
	for _, class := range t.formerPools(inv) {
		delete(inv, class)
	}
}

// closeFormerPools keeps what servers hold of such pools, and reserves the rest: Placement removes no inventory that is in use.
func (t *Tracker) closeFormerPools(inv placement.Inventories) {
	for _, class := range t.formerPools(inv) {
		closed := inv[class]
		closed.Reserved = closed.Total
		inv[class] = closed
	}
}

// inPool tells whether an instance's root disk is, or would be with that flavor, in a pool of its own class,
// and so takes nothing of the default pool.
func inPool(inst *object.Instance, f *object.Flavor) bool {
	name, _ := flavor.Pool(f.ExtraSpecs, inst.System("image_"+flavor.ImagePool))
	return name != ""
}
