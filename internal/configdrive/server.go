package configdrive

// Server is what the documents tell of a server. Strings are null where Nova's are,
// if they are pointers.
type Server struct {
	UUID             string
	ProjectID        string
	DisplayName      *string
	Hostname         string // with the domain
	AvailabilityZone *string
	LaunchIndex      int
	ReservationID    *string
	FlavorName       string
	Metadata         map[string]string
	AdminPassword    string // "": none is told
	UserData         []byte // nil: none
	KeyName          string // "": no key
	KeyData          string
	KeyPair          *KeyPair // nil: the pair is gone
	Files            []File
	VIFs             []VIF
	Devices          []Device
	SecurityGroups   []string          // names
	BlockDevices     map[string]string // EC2 names to devices
	EC2              EC2IDs
	VendorData       any // static vendor data, decoded JSON
}

// EC2IDs are the server's ids in the form of EC2; "" where there is none.
type EC2IDs struct{ InstanceID, AMIID, KernelID, RamdiskID string }

// KeyPair is the user's public key.
type KeyPair struct{ Name, Type, PublicKey string }

// File is one that the user wants to find in the guest.
type File struct {
	Path     string
	Contents []byte
}

// Device is one that carries a tag or another mark.
type Device struct {
	Type      string // "nic" or "disk"
	MAC       string // of a nic
	Serial    *string
	HasSerial bool
	Tags      []string
	VLAN      *int
	VFTrusted bool
}

// VIF is an interface of the server, as the info cache has it.
type VIF struct {
	ID        string // port
	NetworkID string
	DevName   string
	Type      string // vif_type
	MAC       string
	MTU       *int
	Subnets   []Subnet
}

// Subnet is one in which a VIF has addresses.
type Subnet struct {
	CIDR            string
	Version         int // 4 or 6
	Gateway         string
	DNS             []string
	IPs             []string
	FloatingIPs     []string
	Routes          []Route
	DHCPServer      string
	EnableDHCP      bool
	IPv6AddressMode string
}

// Route is a host route of a subnet.
type Route struct{ CIDR, Gateway string }
