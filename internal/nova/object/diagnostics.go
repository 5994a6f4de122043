package object

// Diagnostics describes a running guest (nova/objects/diagnostics.py). Built here: Mark it before it is sent.
type Diagnostics struct {
	Header
	State         string             `nova:"state"`  // pending, running, paused, shutdown, crashed or suspended
	Driver        string             `nova:"driver"` // libvirt, xenapi, vmwareapi, ironic or hyperv: the enum has no other
	Hypervisor    string             `nova:"hypervisor,null"`
	HypervisorOS  string             `nova:"hypervisor_os,null"`
	Uptime        *int               `nova:"uptime,null"` // seconds
	ConfigDrive   bool               `nova:"config_drive"`
	MemoryDetails *MemoryDiagnostics `nova:"memory_details"`
	CPUDetails    []*CPUDiagnostics  `nova:"cpu_details"`
	NICDetails    []*NICDiagnostics  `nova:"nic_details"`
	DiskDetails   []*DiskDiagnostics `nova:"disk_details"`
	NumCPUs       int                `nova:"num_cpus"`
	NumNICs       int                `nova:"num_nics"`
	NumDisks      int                `nova:"num_disks"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Diagnostics) UnmarshalJSON(b []byte) error { return decode(b, o, "Diagnostics") }

// MarshalJSON implements json.Marshaler.
func (o Diagnostics) MarshalJSON() ([]byte, error) { return encode(&o) }

// MemoryDiagnostics is a guest's memory in MiB.
type MemoryDiagnostics struct {
	Header
	Maximum *int `nova:"maximum,null"`
	Used    *int `nova:"used,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *MemoryDiagnostics) UnmarshalJSON(b []byte) error { return decode(b, o, "MemoryDiagnostics") }

// MarshalJSON implements json.Marshaler.
func (o MemoryDiagnostics) MarshalJSON() ([]byte, error) { return encode(&o) }

// CPUDiagnostics is one CPU of a guest.
type CPUDiagnostics struct {
	Header
	ID          *int   `nova:"id,null"`
	Time        *int64 `nova:"time,null"`        // nanoseconds
	Utilisation *int   `nova:"utilisation,null"` // percent
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *CPUDiagnostics) UnmarshalJSON(b []byte) error { return decode(b, o, "CpuDiagnostics") }

// MarshalJSON implements json.Marshaler.
func (o CPUDiagnostics) MarshalJSON() ([]byte, error) { return encode(&o) }

// NICDiagnostics is one interface of a guest.
type NICDiagnostics struct {
	Header
	MACAddress string `nova:"mac_address,null"`
	RxOctets   *int64 `nova:"rx_octets,null"`
	RxErrors   *int64 `nova:"rx_errors,null"`
	RxDrop     *int64 `nova:"rx_drop,null"`
	RxPackets  *int64 `nova:"rx_packets,null"`
	RxRate     *int64 `nova:"rx_rate,null"`
	TxOctets   *int64 `nova:"tx_octets,null"`
	TxErrors   *int64 `nova:"tx_errors,null"`
	TxDrop     *int64 `nova:"tx_drop,null"`
	TxPackets  *int64 `nova:"tx_packets,null"`
	TxRate     *int64 `nova:"tx_rate,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *NICDiagnostics) UnmarshalJSON(b []byte) error { return decode(b, o, "NicDiagnostics") }

// MarshalJSON implements json.Marshaler.
func (o NICDiagnostics) MarshalJSON() ([]byte, error) { return encode(&o) }

// DiskDiagnostics is one disk of a guest.
type DiskDiagnostics struct {
	Header
	ReadBytes     *int64 `nova:"read_bytes,null"`
	ReadRequests  *int64 `nova:"read_requests,null"`
	WriteBytes    *int64 `nova:"write_bytes,null"`
	WriteRequests *int64 `nova:"write_requests,null"`
	ErrorsCount   *int64 `nova:"errors_count,null"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *DiskDiagnostics) UnmarshalJSON(b []byte) error { return decode(b, o, "DiskDiagnostics") }

// MarshalJSON implements json.Marshaler.
func (o DiskDiagnostics) MarshalJSON() ([]byte, error) { return encode(&o) }
