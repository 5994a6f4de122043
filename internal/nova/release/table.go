package release

import (
	"maps"
	"time"
)

// basePayloads are the versions of notification payloads of Zed.
var basePayloads = map[string]string{
	"AuditPeriodPayload":              "1.0",
	"BlockDevicePayload":              "1.0",
	"ExceptionPayload":                "1.1",
	"FlavorPayload":                   "1.4",
	"InstanceActionPayload":           "1.8",
	"InstanceActionRebuildPayload":    "1.9",
	"InstanceActionRescuePayload":     "1.3",
	"InstanceActionResizePrepPayload": "1.3",
	"InstanceActionSnapshotPayload":   "1.9",
	"InstanceActionVolumePayload":     "1.6",
	"InstanceActionVolumeSwapPayload": "1.8",
	"InstanceCreatePayload":           "1.12",
	"InstanceExistsPayload":           "2.0",
	"IpPayload":                       "1.0",
	"KeypairPayload":                  "1.0",
}

// epoxyPayloads are the payloads that gained the field shares in 2025.1.
var epoxyPayloads = map[string]string{
	"InstanceActionPayload":           "1.9",
	"InstanceActionRebuildPayload":    "1.10",
	"InstanceActionRescuePayload":     "1.4",
	"InstanceActionResizePrepPayload": "1.4",
	"InstanceActionSnapshotPayload":   "1.10",
	"InstanceActionVolumePayload":     "1.7",
	"InstanceActionVolumeSwapPayload": "1.9",
	"InstanceCreatePayload":           "1.13",
	"InstanceExistsPayload":           "2.1",
}

// Object versions that differ from Zed's, per release, each with those before it.
var (
	bobcatObjects  = map[string]string{"Instance": "2.8", "Migration": "1.8"}
	caracalObjects = with(bobcatObjects, map[string]string{
		"ConsoleAuthToken": "1.2", "ImageMetaProps": "1.37", "LibvirtLiveMigrateData": "1.11",
		"RequestSpec": "1.15", "ShareMapping": "1.0", "ShareMappingList": "1.0",
	})
	dalmatianObjects = with(caracalObjects, map[string]string{"ImageMetaProps": "1.38", "LibvirtLiveMigrateData": "1.12"})
	epoxyObjects     = with(dalmatianObjects, map[string]string{
		"ConsoleAuthToken": "1.3", "ImageMetaProps": "1.39", "LibvirtLiveMigrateData": "1.13",
		"ShareMapping": "1.2", "ShareMetadata": "1.0",
	})
	flamingoObjects = with(epoxyObjects, map[string]string{"ImageMetaProps": "1.42"})
	gazpachoObjects = with(flamingoObjects, map[string]string{"LibvirtLiveMigrateData": "1.14"})
	hibiscusObjects = with(gazpachoObjects, map[string]string{"ImageMetaProps": "1.44", "ShareMappingList": "1.1"})
)

func with(base, more map[string]string) map[string]string {
	out := maps.Clone(base)
	maps.Copy(out, more)
	return out
}

var (
	oneTopic  = []string{"compute"}
	twoTopics = []string{"compute", "compute-alt"}
)

// releases is the table, oldest first.
var releases = []Release{
	{
		Name: "zed", Alias: "zed", Major: 26, ServiceVersion: 64, OldestCompute: 61, ComputeRPC: "6.1", Topics: oneTopic,
		ShouldCreateBridge: true,
		InitialCPURatio:    16, InitialRAMRatio: 1.5, InitialDiskRatio: 1, HealInterval: time.Minute,
	},
	{
		Name: "2023.1", Alias: "antelope", Major: 27, ServiceVersion: 66, OldestCompute: 61, ComputeRPC: "6.2", Topics: oneTopic,
		NodeIdentityFile: true, PlacementBeforeNode: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: time.Minute,
	},
	{
		Name: "2023.2", Alias: "bobcat", Major: 28, ServiceVersion: 66, OldestCompute: 66, ComputeRPC: "6.2", Topics: oneTopic,
		NodeIdentityFile: true, SendsComputeID: true, PlacementBeforeNode: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: time.Minute,
		objects: bobcatObjects,
	},
	{
		Name: "2024.1", Alias: "caracal", Major: 29, ServiceVersion: 67, OldestCompute: 66, ComputeRPC: "6.3", Topics: oneTopic,
		NodeIdentityFile: true, SendsComputeID: true, SendsServiceID: true, PlacementBeforeNode: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: time.Minute,
		objects: caracalObjects,
	},
	{
		Name: "2024.2", Alias: "dalmatian", Major: 30, ServiceVersion: 67, OldestCompute: 66, ComputeRPC: "6.3", Topics: oneTopic,
		NodeIdentityFile: true, SendsComputeID: true, SendsServiceID: true, PlacementBeforeNode: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: time.Minute,
		objects: dalmatianObjects,
	},
	{
		Name: "2025.1", Alias: "epoxy", Major: 31, ServiceVersion: 68, OldestCompute: 66, ComputeRPC: "6.4", Topics: oneTopic,
		NodeIdentityFile: true, SendsComputeID: true, SendsServiceID: true, PlacementBeforeNode: true, ShareMappings: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: -1,
		objects: epoxyObjects, payloads: epoxyPayloads,
	},
	{
		Name: "2025.2", Alias: "flamingo", Major: 32, ServiceVersion: 70, OldestCompute: 68, ComputeRPC: "6.4", Topics: oneTopic,
		NodeIdentityFile: true, SendsComputeID: true, SendsServiceID: true, PlacementBeforeNode: true, ShareMappings: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: -1,
		objects: flamingoObjects, payloads: epoxyPayloads,
	},
	{
		Name: "2026.1", Alias: "gazpacho", Major: 33, ServiceVersion: 72, OldestCompute: 68, ComputeRPC: "6.5", Topics: twoTopics,
		NodeIdentityFile: true, SendsComputeID: true, SendsServiceID: true, PlacementBeforeNode: true, ShareMappings: true, SubnetEnableDHCP: true, ShouldCreateBridge: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: -1,
		objects: gazpachoObjects, payloads: epoxyPayloads,
	},
	{
		Name: "2026.2", Alias: "hibiscus", Major: 34, ServiceVersion: 74, OldestCompute: 72, ComputeRPC: "6.5", Topics: twoTopics,
		NodeIdentityFile: true, SendsComputeID: true, SendsServiceID: true, OwnerTrait: true, PlacementBeforeNode: true, ShareMappings: true, SubnetEnableDHCP: true,
		InitialCPURatio: 4, InitialRAMRatio: 1, InitialDiskRatio: 1, HealInterval: -1,
		objects: hibiscusObjects, payloads: epoxyPayloads,
	},
}
