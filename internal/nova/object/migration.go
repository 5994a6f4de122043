package object

// Migration is a move of an instance (nova/objects/migration.py).
type Migration struct {
	Header
	ID                int    `nova:"id"`
	UUID              string `nova:"uuid"`
	SourceCompute     string `nova:"source_compute,null"`
	DestCompute       string `nova:"dest_compute,null"`
	SourceNode        string `nova:"source_node,null"`
	DestNode          string `nova:"dest_node,null"`
	DestComputeID     *int   `nova:"dest_compute_id,null"` // from 1.8 (2024.1)
	DestHost          string `nova:"dest_host,null"`       // an address
	OldInstanceTypeID *int   `nova:"old_instance_type_id,null"`
	NewInstanceTypeID *int   `nova:"new_instance_type_id,null"`
	InstanceUUID      string `nova:"instance_uuid,null"`
	Status            string `nova:"status,null"`
	MigrationType     string `nova:"migration_type"` // migration, resize, live-migration or evacuation
	Hidden            bool   `nova:"hidden"`
	MemoryTotal       *int   `nova:"memory_total,null"`
	MemoryProcessed   *int   `nova:"memory_processed,null"`
	MemoryRemaining   *int   `nova:"memory_remaining,null"`
	DiskTotal         *int   `nova:"disk_total,null"`
	DiskProcessed     *int   `nova:"disk_processed,null"`
	DiskRemaining     *int   `nova:"disk_remaining,null"`
	CrossCellMove     bool   `nova:"cross_cell_move"`
	UserID            string `nova:"user_id,null"`
	ProjectID         string `nova:"project_id,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Migration) UnmarshalJSON(b []byte) error { return decode(b, o, "Migration") }

// MarshalJSON implements json.Marshaler.
func (o Migration) MarshalJSON() ([]byte, error) { return encode(&o) }

// MigrationList is a list of migrations.
type MigrationList struct {
	Header
	Objects []*Migration `nova:"objects"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *MigrationList) UnmarshalJSON(b []byte) error { return decode(b, o, "MigrationList") }

// MarshalJSON implements json.Marshaler.
func (o MigrationList) MarshalJSON() ([]byte, error) { return encode(&o) }

// MigrationContext holds the old and the new resources of an instance in a move (nova/objects/migration_context.py).
type MigrationContext struct {
	Header
	InstanceUUID    string   `nova:"instance_uuid"`
	MigrationID     int      `nova:"migration_id"`
	NewNUMATopology *Generic `nova:"new_numa_topology,null"`
	OldNUMATopology *Generic `nova:"old_numa_topology,null"`
	NewPCIDevices   *Generic `nova:"new_pci_devices,null"`
	OldPCIDevices   *Generic `nova:"old_pci_devices,null"`
	NewPCIRequests  *Generic `nova:"new_pci_requests,null"`
	OldPCIRequests  *Generic `nova:"old_pci_requests,null"`
	NewResources    *Generic `nova:"new_resources,null"`
	OldResources    *Generic `nova:"old_resources,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *MigrationContext) UnmarshalJSON(b []byte) error { return decode(b, o, "MigrationContext") }

// MarshalJSON implements json.Marshaler.
func (o MigrationContext) MarshalJSON() ([]byte, error) { return encode(&o) }
