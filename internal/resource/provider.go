package resource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Traits that the agent decides about; all others on the provider are the operator's.
const (
	traitComputeNode     = "COMPUTE_NODE"
	traitStatusDisabled  = "COMPUTE_STATUS_DISABLED"
	traitOwnerNova       = "OWNER_NOVA"
	traitAttachInterface = "COMPUTE_NET_ATTACH_INTERFACE"
	traitImageRaw        = "COMPUTE_IMAGE_TYPE_RAW"
)

// ownTraits are the capability traits of nova/virt/driver.py:CAPABILITY_TRAITS_MAP that the
// agent asserts or removes, so that nobody else can claim them for this host.
var ownTraits = map[string]bool{
	traitImageRaw:                           true,
	traitAttachInterface:                    true,
	"COMPUTE_DEVICE_TAGGING":                true,
	"COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG": true,
	"COMPUTE_VOLUME_ATTACH_WITH_TAG":        false,
	"COMPUTE_VOLUME_EXTEND":                 false,
	"COMPUTE_VOLUME_MULTI_ATTACH":           false,
	"COMPUTE_TRUSTED_CERTS":                 true,
	"COMPUTE_SAME_HOST_COLD_MIGRATE":        false,
	"COMPUTE_RESCUE_BFV":                    false,
	"COMPUTE_ACCELERATORS":                  false,
	"COMPUTE_SECURITY_UEFI_SECURE_BOOT":     false,
	"COMPUTE_SOCKET_PCI_NUMA_AFFINITY":      false,
	"COMPUTE_REMOTE_MANAGED_PORTS":          false,
	"COMPUTE_STORAGE_VIRTIO_FS":             false,
	"COMPUTE_MEM_BACKING_FILE":              false,
	"COMPUTE_IMAGE_TYPE_QCOW2":              false,
	"COMPUTE_IMAGE_TYPE_ISO":                false,
	"COMPUTE_IMAGE_TYPE_VMDK":               false,
}

// maxConflicts is how often an update is tried against others' changes of the provider
// (nova/compute/resource_tracker.py:update).
const maxConflicts = 4

// provider remembers what Placement said of the resource provider.
type provider struct {
	client  *placement.Client
	refresh time.Duration

	turn turn // admits one synchronisation at a time, and guards the fields below

	known       bool
	read        time.Time
	generation  int64
	inventories placement.Inventories
	traits      []string
}

// load reads the provider, made if there is none, unless what is known is fresh.
func (p *provider) load(ctx context.Context, uuid, name string) error {
	if p.known && (p.refresh == 0 || time.Since(p.read) < p.refresh) {
		return nil
	}
	p.known = false
	found, _, err := p.client.EnsureProvider(ctx, uuid, name)
	if err != nil {
		return err
	}
	if p.inventories, p.generation, err = p.client.Inventories(ctx, found.UUID); err != nil {
		return err
	}
	if p.traits, p.generation, err = p.client.Traits(ctx, found.UUID); err != nil {
		return err
	}
	p.known, p.read = true, time.Now()
	return nil
}

// sync makes inventories and traits be what the callback says for what is there.
func (p *provider) sync(ctx context.Context, uuid, name string, want func(placement.Inventories, []string) (placement.Inventories, []string)) error {
	leave, err := p.turn.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	for attempt := 1; ; attempt++ {
		err := p.syncOnce(ctx, uuid, name, want)
		if err == nil {
			return nil
		}
		// Whatever failed, what is remembered may be wrong.
		p.known = false
		if attempt == maxConflicts || !errors.Is(err, placement.ErrConflict) && !errors.Is(err, placement.ErrNotFound) {
			return err
		}
	}
}

func (p *provider) syncOnce(ctx context.Context, uuid, name string, want func(placement.Inventories, []string) (placement.Inventories, []string)) error {
	if err := p.load(ctx, uuid, name); err != nil {
		return err
	}
	inventories, traits := want(p.inventories, p.traits)
	var err error
	if !maps.Equal(inventories, p.inventories) {
		if err := p.ensureClasses(ctx, inventories); err != nil {
			return err
		}
		if p.generation, err = p.client.SetInventories(ctx, uuid, p.generation, inventories); err != nil {
			return err
		}
		p.inventories = inventories
	}
	slices.Sort(traits)
	slices.Sort(p.traits)
	if slices.Equal(traits, p.traits) {
		return nil
	}
	if traits, err = p.client.EnsureTraits(ctx, traits); err != nil {
		return err
	}
	slices.Sort(traits)
	if slices.Equal(traits, p.traits) {
		return nil // Placement is older than what is missing
	}
	if p.generation, err = p.client.SetTraits(ctx, uuid, p.generation, traits); err != nil {
		return err
	}
	p.traits = traits
	return nil
}

// ensureClasses creates the custom classes that the provider is about to get.
func (p *provider) ensureClasses(ctx context.Context, inventories placement.Inventories) error {
	for class := range inventories {
		if _, had := p.inventories[class]; had || !strings.HasPrefix(class, "CUSTOM_") {
			continue
		}
		if err := p.client.EnsureClass(ctx, class); err != nil {
			return err
		}
	}
	return nil
}

// syncProvider brings the provider's inventories and traits up to date
// (nova/compute/resource_tracker.py:_update_to_placement).
func (t *Tracker) syncProvider(ctx context.Context) error {
	t.mu.Lock()
	uuid, name := t.node.UUID, t.nodeName
	t.mu.Unlock()
	sync := func(former func(placement.Inventories)) error {
		return t.provider.sync(ctx, uuid, name, func(inv placement.Inventories, traits []string) (placement.Inventories, []string) {
			want := t.inventories(inv)
			former(want)
			return want, t.traits(traits)
		})
	}
	err := sync(t.dropFormerPools)
	if errors.Is(err, placement.ErrInUse) {
		if err = sync(t.closeFormerPools); err == nil {
			reqctx.Log(ctx).Warning("servers have root disks in a storage pool that [lxc] extra_pools does not name any more; Placement gives it to no others")
		}
	}
	if err != nil {
		return fmt.Errorf("update resource provider %s: %w", uuid, err)
	}
	return nil
}

// inventories computes what the host has. Classes that are not ours are kept; Placement
// refuses a total of zero, so an empty class is left out.
func (t *Tracker) inventories(current placement.Inventories) placement.Inventories {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := maps.Clone(current)
	if out == nil {
		out = placement.Inventories{}
	}
	set := func(class string, total, reserved int, ratio *float64, initial float64) {
		if total <= 0 {
			delete(out, class)
			return
		}
		r := initial
		switch {
		case ratio != nil && *ratio > 0:
			r = *ratio
		case current[class].AllocationRatio > 0:
			r = current[class].AllocationRatio // an operator's change in Placement stays
		}
		out[class] = placement.Inventory{
			Total: total, Reserved: min(reserved, total), MinUnit: 1, MaxUnit: total, StepSize: 1, AllocationRatio: r,
		}
	}
	set("VCPU", t.cpus(), t.opts.ReservedCPUs, t.opts.CPURatio, t.opts.InitialCPURatio)
	set("MEMORY_MB", t.host.MemoryMB, t.opts.ReservedMemoryMB, t.opts.RAMRatio, t.opts.InitialRAMRatio)
	reservedGB := int(math.Ceil(float64(t.opts.ReservedDiskMB) / 1024))
	set("DISK_GB", int(t.disk.Total/gib), reservedGB, t.opts.DiskRatio, t.opts.InitialDiskRatio) //nolint:gosec // fewer than 2^63 GiB
	for _, p := range t.opts.Pools {
		set(p.class(), int(t.pools[p.Name].Total/gib), p.ReservedGB, t.opts.DiskRatio, t.opts.InitialDiskRatio) //nolint:gosec // as above
	}
	return out
}

// traits adds and removes what the agent decides about.
func (t *Tracker) traits(current []string) []string {
	t.mu.Lock()
	disabled := t.disabled
	t.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(current), func(name string) bool {
		own, decided := ownTraits[name]
		return decided && !own || name == traitStatusDisabled && !disabled
	})
	add := []string{traitComputeNode}
	for name, own := range ownTraits {
		if own {
			add = append(add, name)
		}
	}
	if disabled {
		add = append(add, traitStatusDisabled)
	}
	if t.deps.Release.OwnerTrait {
		add = append(add, traitOwnerNova)
	}
	for _, name := range add {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// SetEnabled mirrors the service's state into the trait at once.
func (t *Tracker) SetEnabled(ctx context.Context, enabled bool) error {
	t.mu.Lock()
	t.disabled = !enabled
	if t.since != nil {
		t.since.enabled = true
	}
	t.mu.Unlock()
	return t.syncProvider(ctx)
}

// dropDeadAllocations removes the allocations of instances that are deleted
// (nova/compute/resource_tracker.py:_remove_deleted_instances_allocations). Those of
// instances that moved, or that cannot be found, are not this host's to remove.
func (t *Tracker) dropDeadAllocations(ctx context.Context, migrations []*object.Migration) error {
	t.mu.Lock()
	uuid := t.node.UUID
	t.mu.Unlock()
	allocations, _, err := t.deps.Placement.ProviderAllocations(ctx, uuid)
	if err != nil {
		return fmt.Errorf("list allocations of this host: %w", err)
	}
	moving := map[string]bool{}
	for _, m := range migrations {
		moving[m.UUID] = true
	}
	var errs []error
	for consumer := range allocations {
		t.mu.Lock()
		_, here := t.instances[consumer]
		t.mu.Unlock()
		if here || moving[consumer] {
			continue
		}
		errs = append(errs, t.dropDeadAllocation(reqctx.WithField(ctx, "instance", consumer), consumer))
	}
	return errors.Join(errs...)
}

func (t *Tracker) dropDeadAllocation(ctx context.Context, consumer string) error {
	dead, err := t.isDead(ctx, consumer)
	if err != nil {
		return err
	}
	if !dead {
		reqctx.Log(ctx).Debug("allocation of an instance that is not here is left to its owner")
		return nil
	}
	if err := t.deps.Placement.EmptyAllocation(ctx, consumer); err != nil {
		return fmt.Errorf("remove the allocation of deleted instance %s: %w", consumer, err)
	}
	reqctx.Log(ctx).Warning("removed the allocation of a deleted instance")
	return nil
}

func (t *Tracker) isDead(ctx context.Context, uuid string) (bool, error) {
	inst, err := t.deps.Conductor.InstanceByUUID(reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes")), uuid)
	if err != nil {
		if exception.Is(err, "InstanceNotFound") {
			return false, nil // the scheduler's claim for a build that has not reached us
		}
		return false, fmt.Errorf("look up instance %s: %w", uuid, err)
	}
	return inst.Deleted && !inst.Hidden, nil
}
