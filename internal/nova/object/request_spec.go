package object

// RequestSpec is what the scheduler was asked for (nova/objects/request_spec.py).
type RequestSpec struct {
	Header
	ID                   int                 `nova:"id"`
	Image                *ImageMeta          `nova:"image,null"`
	ProjectID            string              `nova:"project_id,null"`
	UserID               string              `nova:"user_id,null"`
	AvailabilityZone     string              `nova:"availability_zone,null"`
	Flavor               *Flavor             `nova:"flavor,null"`
	NumInstances         int                 `nova:"num_instances"`
	IgnoreHosts          []string            `nova:"ignore_hosts,null"`
	ForceHosts           []string            `nova:"force_hosts,null"`
	ForceNodes           []string            `nova:"force_nodes,null"`
	SchedulerHints       map[string][]string `nova:"scheduler_hints,null"`
	InstanceUUID         string              `nova:"instance_uuid"`
	IsBFV                bool                `nova:"is_bfv"`
	Limits               *SchedulerLimits    `nova:"limits,null"`
	InstanceGroup        *Generic            `nova:"instance_group,null"`
	RequestedNetworks    *NetworkRequestList `nova:"requested_networks,null"`
	RequestedResources   []*RequestGroup     `nova:"requested_resources,null"`
	RequestedDestination *Generic            `nova:"requested_destination,null"` // can hold the cell's database and message bus passwords
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *RequestSpec) UnmarshalJSON(b []byte) error { return decode(b, o, "RequestSpec") }

// MarshalJSON implements json.Marshaler.
func (o RequestSpec) MarshalJSON() ([]byte, error) { return encode(&o) }

// RequestGroup is one numbered group of requested resources (nova/objects/request_spec.py:RequestGroup).
type RequestGroup struct {
	Header
	UseSameProvider bool           `nova:"use_same_provider"`
	Resources       map[string]int `nova:"resources"`
	RequiredTraits  []string       `nova:"required_traits"`
	ForbiddenTraits []string       `nova:"forbidden_traits"`
	RequesterID     string         `nova:"requester_id,null"`
	ProviderUUIDs   []string       `nova:"provider_uuids"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *RequestGroup) UnmarshalJSON(b []byte) error { return decode(b, o, "RequestGroup") }

// MarshalJSON implements json.Marshaler.
func (o RequestGroup) MarshalJSON() ([]byte, error) { return encode(&o) }

// SchedulerLimits are the limits of one claim; null is no limit (nova/objects/request_spec.py:SchedulerLimits).
type SchedulerLimits struct {
	Header
	NUMATopology *Generic `nova:"numa_topology,null"`
	VCPU         *int     `nova:"vcpu,null"`
	DiskGB       *int     `nova:"disk_gb,null"`
	MemoryMB     *int     `nova:"memory_mb,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *SchedulerLimits) UnmarshalJSON(b []byte) error { return decode(b, o, "SchedulerLimits") }

// MarshalJSON implements json.Marshaler.
func (o SchedulerLimits) MarshalJSON() ([]byte, error) { return encode(&o) }

// Selection is one alternate host (nova/objects/selection.py).
type Selection struct {
	Header
	ComputeNodeUUID          string           `nova:"compute_node_uuid"`
	ServiceHost              string           `nova:"service_host"`
	NodeName                 string           `nova:"nodename"`
	CellUUID                 string           `nova:"cell_uuid"`
	Limits                   *SchedulerLimits `nova:"limits,null"`
	AllocationRequest        string           `nova:"allocation_request,null"` // JSON
	AllocationRequestVersion string           `nova:"allocation_request_version,null"`
	AvailabilityZone         string           `nova:"availability_zone,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Selection) UnmarshalJSON(b []byte) error { return decode(b, o, "Selection") }

// MarshalJSON implements json.Marshaler.
func (o Selection) MarshalJSON() ([]byte, error) { return encode(&o) }

// NetworkRequest is one network or port asked for (nova/objects/network_request.py).
type NetworkRequest struct {
	Header
	NetworkID     string `nova:"network_id,null"` // a UUID, "auto" or "none"
	Address       string `nova:"address,null"`
	PortID        string `nova:"port_id,null"`
	PCIRequestID  string `nova:"pci_request_id,null"`
	Tag           string `nova:"tag,null"`
	ARQUUID       string `nova:"arq_uuid,null"`
	DeviceProfile string `nova:"device_profile,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *NetworkRequest) UnmarshalJSON(b []byte) error { return decode(b, o, "NetworkRequest") }

// MarshalJSON implements json.Marshaler.
func (o NetworkRequest) MarshalJSON() ([]byte, error) { return encode(&o) }

// NetworkRequestList is a list of network requests.
type NetworkRequestList struct {
	Header
	Objects []*NetworkRequest `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *NetworkRequestList) UnmarshalJSON(b []byte) error { return decode(b, o, "NetworkRequestList") }

// MarshalJSON implements json.Marshaler.
func (o NetworkRequestList) MarshalJSON() ([]byte, error) { return encode(&o) }
