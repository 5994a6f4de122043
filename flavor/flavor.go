// Package flavor turns a Nova flavor and its extra specs into limits of a Linux
// container. Pure functions: no host is touched and nothing is read.
package flavor

// Flavor is the part of nova's Flavor object that limits depend on.
type Flavor struct {
	Name        string
	VCPUs       int
	MemoryMB    int
	RootGB      int
	EphemeralGB int
	SwapMB      int
	ExtraSpecs  map[string]string
}

// Limits is what the kernel shall enforce, in the kernel's units.
// Zero means "not limited" unless a field says otherwise.
type Limits struct {
	CPUPeriodUS int64  // cfs period; 0: no quota
	CPUQuotaUS  int64  // runtime per period, all CPUs together
	CPUShares   uint64 // cgroup v1 scale, 1024 = one vCPU's weight; v2's weight derives from it
	CPUSet      string // pinned CPUs in list form; empty: all
	MemoryBytes int64
	SwapBytes   int64 // on top of memory
	PIDs        int64 // always finite
	RootGB      int
	Disk        DiskLimits
	Network     NetworkLimits
	Privileged  bool // the flavor asks for it; the agent's option must agree
	Nested      bool // may run containers of its own
}

// DiskLimits are throttles of the root disk (quota:disk_*); 0: none.
type DiskLimits struct {
	ReadBytesSec, WriteBytesSec, TotalBytesSec int64
	ReadIOPSSec, WriteIOPSSec, TotalIOPSSec    int64
}

// NetworkLimits are throttles of every NIC (quota:vif_*): averages and peaks in kB/s, bursts in kB; 0: none.
type NetworkLimits struct {
	InboundAverage, InboundPeak, InboundBurst    int64
	OutboundAverage, OutboundPeak, OutboundBurst int64
}

// Policy is what the host adds to every flavor ([lxc] options).
type Policy struct {
	AllowPrivileged bool
	DefaultPIDs     int64
}
