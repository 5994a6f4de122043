package object

// Flavor is a flavor (nova/objects/flavor.py).
type Flavor struct {
	Header
	ID          int               `nova:"id"`
	Name        string            `nova:"name,null"`
	MemoryMB    int               `nova:"memory_mb"`
	VCPUs       int               `nova:"vcpus"`
	RootGB      int               `nova:"root_gb"`
	EphemeralGB int               `nova:"ephemeral_gb"`
	FlavorID    string            `nova:"flavorid"`
	Swap        int               `nova:"swap"` // MiB
	RxTxFactor  *float64          `nova:"rxtx_factor,null"`
	VCPUWeight  *int              `nova:"vcpu_weight,null"`
	Disabled    bool              `nova:"disabled"`
	IsPublic    bool              `nova:"is_public"`
	ExtraSpecs  map[string]string `nova:"extra_specs"`
	Projects    []string          `nova:"projects"`
	Description string            `nova:"description,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Flavor) UnmarshalJSON(b []byte) error { return decode(b, o, "Flavor") }

// MarshalJSON implements json.Marshaler.
func (o Flavor) MarshalJSON() ([]byte, error) { return encode(&o) }
