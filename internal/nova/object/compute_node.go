package object

// ComputeNode is a hypervisor record (nova/objects/compute_node.py).
type ComputeNode struct {
	Header
	ID                  int                `nova:"id"`
	UUID                string             `nova:"uuid"`
	ServiceID           *int               `nova:"service_id,null"`
	Host                string             `nova:"host,null"`
	VCPUs               int                `nova:"vcpus"`
	MemoryMB            int                `nova:"memory_mb"`
	LocalGB             int                `nova:"local_gb"`
	VCPUsUsed           int                `nova:"vcpus_used"`
	MemoryMBUsed        int                `nova:"memory_mb_used"`
	LocalGBUsed         int                `nova:"local_gb_used"`
	HypervisorType      string             `nova:"hypervisor_type"`
	HypervisorVersion   int                `nova:"hypervisor_version"`
	HypervisorHostname  string             `nova:"hypervisor_hostname,null"`
	FreeRAMMB           int                `nova:"free_ram_mb"` // may be negative: usage beyond the total
	FreeDiskGB          int                `nova:"free_disk_gb"`
	CurrentWorkload     int                `nova:"current_workload"`
	RunningVMs          int                `nova:"running_vms"`
	CPUInfo             string             `nova:"cpu_info"` // JSON, "" if none; never null: the column refuses it
	DiskAvailableLeast  *int               `nova:"disk_available_least,null"`
	Metrics             string             `nova:"metrics"` // JSON, "[]" if none
	Stats               map[string]*string `nova:"stats"`
	HostIP              string             `nova:"host_ip,null"`
	NUMATopology        string             `nova:"numa_topology,null"` // JSON of a NUMATopology object
	SupportedHVSpecs    []*HVSpec          `nova:"supported_hv_specs"`
	PCIDevicePools      *PciDevicePoolList `nova:"pci_device_pools,null"`
	CPUAllocationRatio  float64            `nova:"cpu_allocation_ratio"`
	RAMAllocationRatio  float64            `nova:"ram_allocation_ratio"`
	DiskAllocationRatio float64            `nova:"disk_allocation_ratio"`
	Mapped              int                `nova:"mapped"` // 0: to be found by discover_hosts; written for a record that was deleted alone
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ComputeNode) UnmarshalJSON(b []byte) error { return decode(b, o, "ComputeNode") }

// MarshalJSON implements json.Marshaler.
func (o ComputeNode) MarshalJSON() ([]byte, error) { return encode(&o) }

// ComputeNodeList is a list of compute nodes.
type ComputeNodeList struct {
	Header
	Objects []*ComputeNode `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *ComputeNodeList) UnmarshalJSON(b []byte) error { return decode(b, o, "ComputeNodeList") }

// MarshalJSON implements json.Marshaler.
func (o ComputeNodeList) MarshalJSON() ([]byte, error) { return encode(&o) }

// HVSpec is one kind of guest that a hypervisor runs (nova/objects/hv_spec.py).
type HVSpec struct {
	Header
	Arch   string `nova:"arch"`
	HVType string `nova:"hv_type"`
	VMMode string `nova:"vm_mode"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *HVSpec) UnmarshalJSON(b []byte) error { return decode(b, o, "HVSpec") }

// MarshalJSON implements json.Marshaler.
func (o HVSpec) MarshalJSON() ([]byte, error) { return encode(&o) }

// PciDevicePoolList is the list of free PCI devices of a node (nova/objects/pci_device_pool.py).
type PciDevicePoolList struct {
	Header
	Objects []*Generic `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *PciDevicePoolList) UnmarshalJSON(b []byte) error { return decode(b, o, "PciDevicePoolList") }

// MarshalJSON implements json.Marshaler.
func (o PciDevicePoolList) MarshalJSON() ([]byte, error) { return encode(&o) }
