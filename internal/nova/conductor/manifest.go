package conductor

import "github.com/compute-agent/compute-agent/internal/nova/release"

// children are the classes that a class refers to in its object fields
// (oslo.versionedobjects base.py:obj_tree_get_versions).
var children = map[string][]string{
	"BlockDeviceMapping":     {"Instance"},
	"BlockDeviceMappingList": {"BlockDeviceMapping"},
	"ComputeNode":            {"HVSpec", "PciDevicePoolList"},
	"ComputeNodeList":        {"ComputeNode"},
	"DeviceMetadata":         {"DeviceBus"},
	"Instance": {
		"ServiceList", "InstanceInfoCache", "SecurityGroupList", "InstanceFault", "PciDeviceList", "InstanceNUMATopology",
		"InstancePCIRequests", "InstanceDeviceMetadata", "TagList", "Flavor", "VirtCPUModel", "EC2Ids", "MigrationContext",
		"KeyPairList", "TrustedCerts", "ResourceList",
	},
	"InstanceActionEventList": {"InstanceActionEvent"},
	"InstanceActionList":      {"InstanceAction"},
	"InstanceDeviceMetadata":  {"DeviceMetadata"},
	"InstanceList":            {"Instance"},
	"InstanceNUMACell":        {"VirtCPUTopology"},
	"InstanceNUMATopology":    {"InstanceNUMACell"},
	"InstancePCIRequests":     {"InstancePCIRequest"},
	"KeyPairList":             {"KeyPair"},
	"MigrationContext":        {"InstanceNUMATopology", "PciDeviceList", "InstancePCIRequests", "ResourceList"},
	"MigrationList":           {"Migration"},
	"PciDeviceList":           {"PciDevice"},
	"PciDevicePoolList":       {"PciDevicePool"},
	"Resource":                {"ResourceMetadata"},
	"ResourceList":            {"Resource"},
	"SecurityGroupList":       {"SecurityGroup"},
	"Service":                 {"ComputeNode"},
	"ServiceList":             {"Service"},
	"TagList":                 {"Tag"},
	"VirtCPUModel":            {"VirtCPUTopology", "VirtCPUFeature"},
	"VirtualInterfaceList":    {"VirtualInterface"},
}

// manifest lists the versions of a class and of all classes below it, which the
// conductor backports a result to. An incomplete one would turn nested objects into
// version 1.0.
func manifest(r release.Release, class string) map[string]string {
	out := map[string]string{}
	var add func(string)
	add = func(name string) {
		if _, ok := out[name]; ok {
			return
		}
		out[name] = r.ObjectVersion(name)
		for _, child := range children[name] {
			add(child)
		}
	}
	add(class)
	return out
}
