package resource

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/storage"
)

// Options describe the host; ratios and reserves are named after their options.
type Options struct {
	Host         string   // [DEFAULT] host
	HostIP       string   // [DEFAULT] my_ip
	NodeName     string   // hypervisor_hostname of a node that is made here
	StatePath    string   // where compute_id is written
	IdentityDirs []string // where compute_id is read: the configuration files' directories and StatePath

	HypervisorType    string
	HypervisorVersion int
	Guests            []GuestKind // that the host runs; none: system containers

	CPUs             int // in cpu_shared_set or all; 0: all online
	ReservedCPUs     int
	ReservedMemoryMB int
	ReservedDiskMB   int

	// Ratios; nil: not set, so that Placement's own, else the initial ones hold.
	CPURatio, RAMRatio, DiskRatio                      *float64
	InitialCPURatio, InitialRAMRatio, InitialDiskRatio float64
	// Pools are the storage pools beside the default one, each of a resource class of its own.
	Pools []Pool
	// CountFailedBuilds: [compute] consecutive_build_service_disable_threshold is not 0.
	CountFailedBuilds bool
	// ProviderRefresh is how long what Placement said of the provider is believed; 0: for ever.
	ProviderRefresh time.Duration
}

// GuestKind is a kind of guest in the words of image properties, img_hv_type and hw_vm_mode.
type GuestKind struct{ HVType, VMMode string }

// containers are system containers, under both names that image properties use for them.
var containers = []GuestKind{{"lxc", "exe"}, {"lxd", "exe"}}

// Deps are what the tracker asks.
type Deps struct {
	Release   release.Release
	Conductor *conductor.Client
	Placement *placement.Client
	HostInfo  func(ctx context.Context) (hostinfo.Info, error)
	Disk      func(ctx context.Context) (storage.Usage, error)
	// PoolUsage is the size of one of Options.Pools.
	PoolUsage func(ctx context.Context, name string) (storage.Usage, error)
}

// Tracker keeps one host's ComputeNode and resource provider. Its methods are safe for
// concurrent use and hold no lock while they wait for another service.
type Tracker struct {
	opts Options
	deps Deps

	provider provider
	auditing turn // admits one audit at a time

	mu           sync.Mutex // guards the fields below
	node         *object.ComputeNode
	nodeName     string
	computeID    int
	saved        map[string]any   // fields as last stored; nil before the first save
	instances    map[string]usage // by UUID
	migrating    map[string]usage // migrations that take resources here besides an instance, by UUID
	failedBuilds int
	disabled     bool
	host         hostinfo.Info
	disk         storage.Usage
	pools        map[string]storage.Usage // by name
	flushing     bool                     // a save is under way
	dirty        bool                     // something changed since that save began
	next         int                      // of NextInstance
	// since is what changed while an audit reads the control plane's lists, which may be
	// older; nil: none is under way.
	since *changesSince
}

// changesSince are the changes that an audit must not undo.
type changesSince struct {
	instances map[string]*usage // by UUID; nil: the instance went away
	moves     map[string]*usage // by the migration's UUID; nil: it ended
	enabled   bool              // SetEnabled was called
}

// New returns a tracker. Start must succeed before the others are called.
func New(o Options, d Deps) *Tracker {
	return &Tracker{
		opts: o, deps: d, provider: provider{client: d.Placement, refresh: o.ProviderRefresh},
		instances: map[string]usage{}, migrating: map[string]usage{},
	}
}

// Start finds or makes the compute node and its resource provider and brings both up to
// date. serviceID is the id of this host's service record.
func (t *Tracker) Start(ctx context.Context, serviceID int) error {
	node, id, err := t.findNode(ctx)
	if err != nil {
		return err
	}
	if err := t.measure(ctx); err != nil {
		return err
	}
	if node == nil {
		node, err = t.createNode(ctx, id, serviceID)
		if err != nil {
			return err
		}
	} else if err := t.reviveNode(ctx, node, serviceID); err != nil {
		return err
	}
	t.mu.Lock()
	t.node, t.nodeName, t.computeID = node, node.HypervisorHostname, node.ID
	t.mu.Unlock()
	return t.Audit(ctx)
}

func (t *Tracker) createNode(ctx context.Context, id string, serviceID int) (*object.ComputeNode, error) {
	ratio := func(set *float64, initial float64) float64 {
		if set != nil && *set > 0 {
			return *set
		}
		return initial
	}
	node := &object.ComputeNode{
		UUID: id, ServiceID: &serviceID, Host: t.opts.Host, HypervisorHostname: t.opts.NodeName,
		CPUAllocationRatio:  ratio(t.opts.CPURatio, t.opts.InitialCPURatio),
		RAMAllocationRatio:  ratio(t.opts.RAMRatio, t.opts.InitialRAMRatio),
		DiskAllocationRatio: ratio(t.opts.DiskRatio, t.opts.InitialDiskRatio),
	}
	t.mu.Lock()
	t.fill(node)
	t.mu.Unlock()
	if err := t.deps.Conductor.CreateComputeNode(ctx, node); err != nil {
		if exception.Is(err, "DuplicateRecord") {
			return nil, fmt.Errorf("%w: host %s and node %s have a record under another UUID; is another agent running as this host? %w",
				ErrIdentity, t.opts.Host, t.opts.NodeName, err)
		}
		return nil, fmt.Errorf("create compute node: %w", err)
	}
	reqctx.Log(ctx).WithField("node", node.HypervisorHostname).WithField("uuid", id).Info("compute node created")
	return node, nil
}

// reviveNode takes over a record that was deleted, or that an older release left without its service.
func (t *Tracker) reviveNode(ctx context.Context, node *object.ComputeNode, serviceID int) error {
	changes := map[string]any{}
	if node.Deleted { // the save finds the record only where deleted ones are seen
		ctx = reqctx.With(ctx, reqctx.From(ctx).WithReadDeleted("yes"))
		changes["deleted"], changes["deleted_at"] = false, nil
		changes["mapped"] = 0 // with the service went the host's mapping: discover_hosts is to find it again (nova bug 2085135)
	}
	if t.deps.Release.SendsServiceID && (node.ServiceID == nil || *node.ServiceID != serviceID) {
		changes["service_id"] = serviceID
	}
	if len(changes) == 0 {
		return nil
	}
	if err := t.deps.Conductor.SaveComputeNode(ctx, node, changes); err != nil {
		return fmt.Errorf("save compute node: %w", err)
	}
	return nil
}

// measure reads what the host has now.
func (t *Tracker) measure(ctx context.Context) error {
	host, err := t.deps.HostInfo(ctx)
	if err != nil {
		return fmt.Errorf("read host resources: %w", err)
	}
	disk, err := t.deps.Disk(ctx)
	if err != nil {
		return fmt.Errorf("read size of the root disk pool: %w", err)
	}
	pools, err := t.measurePools(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.host, t.disk, t.pools = host, disk, pools
	return nil
}

const gib = 1 << 30

// majorUptimeInStats is the release (2025.2) from which the API reads a host's uptime
// from its stats instead of asking it.
const majorUptimeInStats = 32

// fill computes every field of the node that the agent owns. t.mu is held.
func (t *Tracker) fill(n *object.ComputeNode) {
	n.VCPUs, n.MemoryMB, n.LocalGB = t.cpus(), t.host.MemoryMB, int(t.disk.Total/gib) //nolint:gosec // a disk has fewer than 2^63 GiB
	n.VCPUsUsed, n.MemoryMBUsed, n.LocalGBUsed = t.opts.ReservedCPUs, t.opts.ReservedMemoryMB, t.opts.ReservedDiskMB/1024
	for _, list := range []map[string]usage{t.instances, t.migrating} {
		for _, u := range list {
			n.VCPUsUsed += u.vcpus
			n.MemoryMBUsed += u.memoryMB
			n.LocalGBUsed += u.diskGB
		}
	}
	n.FreeRAMMB, n.FreeDiskGB = n.MemoryMB-n.MemoryMBUsed, n.LocalGB-n.LocalGBUsed
	least := int(t.disk.Free / gib) //nolint:gosec // as above
	n.DiskAvailableLeast = &least
	n.RunningVMs = len(t.instances)
	uptime := ""
	if t.deps.Release.Major >= majorUptimeInStats {
		uptime = t.host.Uptime
	}
	n.Stats, n.CurrentWorkload = stats(t.instances, t.failedBuilds, uptime)
	n.CPUInfo, n.Metrics, n.HostIP = t.host.CPU.JSON(), "[]", t.opts.HostIP
	n.HypervisorType, n.HypervisorVersion = t.opts.HypervisorType, t.opts.HypervisorVersion
	n.SupportedHVSpecs = t.hvSpecs()
	n.PCIDevicePools = &object.PciDevicePoolList{
		Header: object.New("PciDevicePoolList", t.deps.Release.ObjectVersion("PciDevicePoolList")), Objects: []*object.Generic{},
	}
}

func (t *Tracker) cpus() int {
	if t.opts.CPUs > 0 {
		return t.opts.CPUs
	}
	return t.host.CPUs
}

// hvSpecs are the guests of its architecture that this host runs.
func (t *Tracker) hvSpecs() []*object.HVSpec {
	kinds := t.opts.Guests
	if len(kinds) == 0 {
		kinds = containers
	}
	specs := make([]*object.HVSpec, 0, 2*len(kinds))
	archs := []string{t.host.Arch}
	if t.host.Arch == "x86_64" {
		archs = append(archs, "i686")
	}
	for _, arch := range archs {
		for _, kind := range kinds {
			specs = append(specs, &object.HVSpec{
				Header: object.New("HVSpec", t.deps.Release.ObjectVersion("HVSpec")), Arch: arch, HVType: kind.HVType, VMMode: kind.VMMode,
			})
		}
	}
	return specs
}

// Claim counts an instance that is about to be built here. Placement has admitted it; what
// is refused here is what could never run (nova/compute/claims.py).
func (t *Tracker) Claim(ctx context.Context, inst *object.Instance) error {
	u := usageOf(inst, inst.Flavor)
	t.mu.Lock()
	memory, cpus := t.host.MemoryMB, t.cpus()
	fits := u.memoryMB <= memory && u.vcpus <= cpus
	if fits {
		t.instances[inst.UUID] = u
		if t.since != nil {
			t.since.instances[inst.UUID] = &u
		}
	}
	t.mu.Unlock()
	if !fits {
		return exception.ComputeResourcesUnavailable(fmt.Sprintf(
			"flavor needs %d vCPUs and %d MiB, host %s has %d and %d", u.vcpus, u.memoryMB, t.opts.Host, cpus, memory))
	}
	return t.flush(ctx)
}

// Forget stops counting an instance. A node record that cannot be saved is the next audit's.
func (t *Tracker) Forget(ctx context.Context, uuid string) {
	t.mu.Lock()
	_, known := t.instances[uuid]
	delete(t.instances, uuid)
	if t.since != nil {
		t.since.instances[uuid] = nil
	}
	t.mu.Unlock()
	if !known {
		return
	}
	if err := t.flush(ctx); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("compute node not saved; the next audit does it")
	}
}

// BuildFailed and BuildSucceeded keep the count of consecutive failures, which the
// scheduler's BuildFailureWeigher avoids (nova/compute/stats.py:build_failed).
func (t *Tracker) BuildFailed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opts.CountFailedBuilds {
		t.failedBuilds++
	}
}

// BuildSucceeded ends a row of failures.
func (t *Tracker) BuildSucceeded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failedBuilds = 0
}

// Ownership returns the changes that place an instance on this host.
func (t *Tracker) Ownership() map[string]any {
	t.mu.Lock()
	defer t.mu.Unlock()
	return map[string]any{"host": t.opts.Host, "launched_on": t.opts.Host, "node": t.nodeName, "compute_id": t.computeID}
}

// NoOwnership returns the changes that take an instance off its host.
func (t *Tracker) NoOwnership() map[string]any {
	return map[string]any{"host": nil, "launched_on": nil, "node": nil, "compute_id": nil}
}

// ProviderUUID returns the UUID of the host's resource provider.
func (t *Tracker) ProviderUUID() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.node.UUID
}

// Instances returns the UUIDs of the instances on this host, sorted.
func (t *Tracker) Instances() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.instances))
}

// NextInstance walks through the instances, one a call and round again.
func (t *Tracker) NextInstance() (string, bool) {
	all := t.Instances()
	if len(all) == 0 {
		return "", false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = (t.next + 1) % len(all)
	return all[t.next], true
}

// flush stores the node's changed fields. Concurrent callers share a save: who finds one
// under way leaves the rest to it.
func (t *Tracker) flush(ctx context.Context) error {
	t.mu.Lock()
	if t.flushing {
		t.dirty = true
		t.mu.Unlock()
		return nil
	}
	t.flushing = true
	for {
		t.dirty = false
		t.fill(t.node)
		fields := t.nodeFields()
		changes := changed(t.saved, fields)
		node := &object.ComputeNode{Header: t.node.Clone(), ID: t.node.ID, UUID: t.node.UUID}
		t.mu.Unlock()
		var err error
		if len(changes) > 0 {
			err = t.deps.Conductor.SaveComputeNode(ctx, node, changes)
		}
		t.mu.Lock()
		if err == nil {
			t.saved = fields
		}
		if err != nil || !t.dirty {
			t.flushing = false
			t.mu.Unlock()
			if err != nil {
				return fmt.Errorf("save compute node: %w", err)
			}
			return nil
		}
	}
}

// changed returns the fields that differ from what is stored.
func changed(saved, fields map[string]any) map[string]any {
	changes := map[string]any{}
	for key, value := range fields {
		if old, ok := saved[key]; !ok || !reflect.DeepEqual(old, value) {
			changes[key] = value
		}
	}
	return changes
}

// nodeFields are the stored fields of the node, in comparable form: what fill computes and
// the ratios that the operator has set, which weighers read here
// (nova/compute/resource_tracker.py:_copy_resources). t.mu is held.
func (t *Tracker) nodeFields() map[string]any {
	n := t.node
	fields := map[string]any{
		"vcpus": n.VCPUs, "memory_mb": n.MemoryMB, "local_gb": n.LocalGB,
		"vcpus_used": n.VCPUsUsed, "memory_mb_used": n.MemoryMBUsed, "local_gb_used": n.LocalGBUsed,
		"free_ram_mb": n.FreeRAMMB, "free_disk_gb": n.FreeDiskGB, "disk_available_least": *n.DiskAvailableLeast,
		"current_workload": n.CurrentWorkload, "running_vms": n.RunningVMs, "cpu_info": n.CPUInfo,
		"hypervisor_type": n.HypervisorType, "hypervisor_version": n.HypervisorVersion, "hypervisor_hostname": n.HypervisorHostname,
		"host_ip": n.HostIP, "metrics": n.Metrics, "stats": maps.Clone(n.Stats),
		"numa_topology": nil, "supported_hv_specs": n.SupportedHVSpecs, "pci_device_pools": n.PCIDevicePools,
	}
	for name, ratio := range map[string]*float64{
		"cpu_allocation_ratio": t.opts.CPURatio, "ram_allocation_ratio": t.opts.RAMRatio, "disk_allocation_ratio": t.opts.DiskRatio,
	} {
		if ratio != nil && *ratio > 0 {
			fields[name] = *ratio
		}
	}
	return fields
}
