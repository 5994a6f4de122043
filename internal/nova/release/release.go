// Package release says how nova-compute of each Nova release behaves on the wire, from
// Zed (26) to 2026.2 (34): service version, RPC version, topics, object versions and
// defaults. The agent behaves like the release of its control plane.
//
// Sources: nova/objects/service.py (SERVICE_VERSION), nova/compute/manager.py
// (ComputeManager.target), nova/tests/unit/objects/test_objects.py (object_data) and
// nova/notifications/objects of the tags 26.0.0 to 33.0.0 and master; 2026.2's service
// version as seen on the wire of nova 34.0.0.
package release

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Release is one release of Nova.
type Release struct {
	Name  string // "zed", "2023.1" … "2026.2"
	Alias string // "zed", "antelope" … "hibiscus"
	Major int    // Nova's major version, 26 … 34

	// ServiceVersion is the number that nova-compute writes into its service record.
	// Lower pins the RPC of the whole cell, higher breaks "auto" pins: it must be exact.
	ServiceVersion int
	// OldestCompute is the least service version of a compute that the control plane accepts.
	OldestCompute int
	// ComputeRPC is the newest version of the compute API that is served.
	ComputeRPC string
	// Topics are the RPC topics to serve: "compute", from 2026.1 also "compute-alt".
	Topics []string

	// NodeIdentityFile: the compute node's UUID is kept in the file compute_id (from
	// 2023.1), and nodes are looked up by UUID instead of host and node name.
	NodeIdentityFile bool
	// SendsComputeID: Instance.compute_id and Migration.dest_compute_id go with node and
	// dest_node (from 2023.2).
	SendsComputeID bool
	// SendsServiceID: the compute node record carries service_id (from 2024.1).
	SendsServiceID bool
	// OwnerTrait: the provider must have the trait OWNER_NOVA (2026.2).
	OwnerTrait bool
	// PlacementBeforeNode: an audit updates placement before it saves the compute node (from 2023.1).
	PlacementBeforeNode bool
	// ShareMappings: versioned notifications have the field shares (from 2025.1).
	ShareMappings bool
	// SubnetEnableDHCP: the subnet meta in network_info has enable_dhcp (from 2023.1).
	SubnetEnableDHCP bool
	// ShouldCreateBridge: the network meta of linuxbridge has should_create_bridge (to 2026.1).
	ShouldCreateBridge bool

	// Initial allocation ratios of a new compute node.
	InitialCPURatio, InitialRAMRatio, InitialDiskRatio float64
	// HealInterval is the default of heal_instance_info_cache_interval; negative is off.
	HealInterval time.Duration

	objects  map[string]string // versions that differ from base
	payloads map[string]string // versions that differ from basePayloads
}

// ObjectVersion is the version of an object class in this release; "" when the release
// has no such class.
func (r Release) ObjectVersion(class string) string {
	if v, ok := r.objects[class]; ok {
		return v
	}
	return baseObjects[class]
}

// PayloadVersion is the version of a class of versioned notification payloads; "" when
// the release has none.
func (r Release) PayloadVersion(class string) string {
	if v, ok := r.payloads[class]; ok {
		return v
	}
	return basePayloads[class]
}

// String gives the name.
func (r Release) String() string { return r.Name }

// All returns the known releases, oldest first.
func All() []Release { return slices.Clone(releases) }

// Oldest is the first known release.
func Oldest() Release { return releases[0] }

// ByName finds a release by number ("2024.1") or name ("caracal"), in any case.
func ByName(name string) (Release, error) {
	for _, r := range releases {
		if strings.EqualFold(name, r.Name) || strings.EqualFold(name, r.Alias) {
			return r, nil
		}
	}
	names := make([]string, 0, len(releases))
	for _, r := range releases {
		names = append(names, r.Name)
	}
	return Release{}, fmt.Errorf("find release %.40q: known are %s", name, strings.Join(names, ", "))
}

// Detect finds the release of a control plane by its own service version; false when the
// version is older or newer than every known release. Of two releases with one number
// (66, 67) the older is meant: what it sends, both accept. A number between two releases
// is that of a development snapshot of the newer one.
func Detect(serviceVersion int) (Release, bool) {
	for _, r := range releases {
		if serviceVersion >= oldestServiceVersion && serviceVersion <= r.ServiceVersion {
			return r, true
		}
	}
	return Release{}, false
}

// oldestServiceVersion is Zed's; a lower number is Yoga's or older.
const oldestServiceVersion = 64
