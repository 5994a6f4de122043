package config

import "time"

// Config is the typed configuration. There is one struct per section, and
// fields are named after the options ([neutron] ovs_bridge is Neutron.OVSBridge).
//
// Types: options in seconds are time.Duration; credentials are [Secret]; a
// pointer is nil where the option may be unset and unset differs from zero; an
// unset string or list is empty. Texts are final: references ($my_ip) are resolved.
//
// Where the comment says "by release", nil means that nova-compute's default
// depends on the control plane's release (internal/nova/release has it).
type Config struct {
	Default                Defaults
	API                    API
	Cinder                 Cinder
	Compute                Compute
	ConsoleAuth            ConsoleAuth
	FilterScheduler        FilterScheduler
	Glance                 Glance
	ImageCache             ImageCache
	KeyManager             KeyManager
	Keystone               Keystone
	Libvirt                Libvirt
	LXC                    LXC
	MKS                    MKS
	Neutron                Neutron
	Notifications          Notifications
	OSVIFLinuxBridge       OSVIFLinuxBridge
	OSVIFOVS               OSVIFOVS
	MessagingNotifications MessagingNotifications // [oslo_messaging_notifications]
	RabbitMQ               RabbitMQ               // [oslo_messaging_rabbit]
	Placement              Placement
	SerialConsole          SerialConsole
	ServiceUser            ServiceUser
	Spice                  Spice
	UpgradeLevels          UpgradeLevels
	VendordataDynamicAuth  VendordataDynamicAuth
	VNC                    VNC
	Workarounds            Workarounds
	Barbican               Barbican
	BarbicanServiceUser    BarbicanServiceUser
}

// Defaults is section [DEFAULT].
type Defaults struct {
	// Identity.
	Host                            string // RPC server name, Service.host, ComputeNode.host, binding:host_id
	MyIP                            string
	MyBlockStorageIP                string
	MySharedFSStorageIP             string
	ConsoleHost                     string
	StatePath                       string
	InstancesPath                   string
	TempDir                         string // "" is the system's
	InstanceNameTemplate            string // Python % template over the instance's fields
	ComputeDriver                   string // only looked at: another driver's name is a warning
	DefaultAvailabilityZone         string
	DefaultScheduleZone             string
	InternalServiceAvailabilityZone string
	EnableNewServices               bool
	ServicegroupDriver              string
	ReportInterval                  time.Duration
	ServiceDownTime                 time.Duration
	PeriodicEnable                  bool
	PeriodicFuzzyDelay              time.Duration
	GracefulShutdownTimeout         time.Duration // 0 is no limit
	ManagerShutdownTimeout          time.Duration
	ResumeGuestsStateOnHostBoot     bool
	ExecutorThreadPoolSize          int
	RPCPingEnabled                  bool
	ControlExchange                 string
	TransportURL                    Secret
	RPCResponseTimeout              time.Duration
	LongRPCTimeout                  time.Duration
	DefaultAccessIPNetworkName      string
	InstanceUsageAudit              bool
	InstanceUsageAuditPeriod        string

	// Logging.
	Debug             bool
	LogFile           string
	LogDir            string
	UseJSON           bool
	UseSyslog         bool
	UseJournal        bool
	UseStderr         bool
	SyslogLogFacility string

	// Resources.
	ReservedHostMemoryMB        int
	ReservedHostDiskMB          int
	ReservedHostCPUs            int
	ReservedHugePages           []map[string]string
	CPUAllocationRatio          *float64 // nil (and 0.0 in the file): initial ratio, placement's value kept
	RAMAllocationRatio          *float64
	DiskAllocationRatio         *float64
	InitialCPUAllocationRatio   *float64 // by release
	InitialRAMAllocationRatio   *float64 // by release
	InitialDiskAllocationRatio  float64
	VCPUPinSet                  CPUSet
	ComputeMonitors             []string
	MaxConcurrentBuilds         int // 0 is unlimited
	MaxConcurrentSnapshots      int // 0 is unlimited
	MaxConcurrentLiveMigrations int // 0 is unlimited

	// Timeouts and periodic tasks.
	UpdateResourcesInterval            time.Duration // 0 is 60 s, negative is off
	SyncPowerStateInterval             time.Duration // negative is off
	SyncPowerStatePoolSize             int
	HealInstanceInfoCacheInterval      *time.Duration // by release; 0 and negative are off
	ReclaimInstanceInterval            time.Duration
	VolumeUsagePollInterval            time.Duration
	ShelvedPollInterval                time.Duration
	ShelvedOffloadTime                 time.Duration // 0 is at once, negative is never
	InstanceDeleteInterval             time.Duration
	SchedulerInstanceSyncInterval      time.Duration
	RunningDeletedInstanceAction       string // reap, log, noop, shutdown
	RunningDeletedInstancePollInterval time.Duration
	RunningDeletedInstanceTimeout      time.Duration
	InstanceBuildTimeout               time.Duration // 0 is off
	RebootTimeout                      time.Duration // 0 is off
	RescueTimeout                      time.Duration // 0 is off
	ResizeConfirmWindow                time.Duration // 0 is off
	ShutdownTimeout                    time.Duration
	VIFPluggingTimeout                 time.Duration
	VIFPluggingIsFatal                 bool
	ReimageTimeoutPerGB                time.Duration
	BlockDeviceAllocateRetries         int
	BlockDeviceAllocateRetriesInterval time.Duration
	NetworkAllocateRetries             int
	LiveMigrationRetryCount            int
	MigrateMaxRetries                  int // -1 is "as many as hosts"

	// Guests and images.
	AllowResizeToSameHost         bool
	ConfigDriveFormat             string // iso9660 or vfat
	ForceConfigDrive              bool
	DefaultEphemeralFormat        string
	FlatInjected                  bool
	MaxLocalBlockDevices          int // negative is unlimited
	NonInheritableImageProperties []string
	PasswordLength                int
	PreallocateImages             string // none or space
}

// API is section [api], as far as config drives and metadata documents use it.
type API struct {
	DHCPDomain                      string
	ConfigDriveSkipVersions         string
	VendordataProviders             []string
	VendordataJSONFilePath          string
	VendordataDynamicTargets        []string // name@url
	VendordataDynamicSSLCertFile    string
	VendordataDynamicConnectTimeout time.Duration
	VendordataDynamicReadTimeout    time.Duration
	VendordataDynamicFailureFatal   bool
}

// Auth holds the keystoneauth options of a service section: the plugin's
// (taken from the section that auth_section names, if it names one), the
// session's (TLS, timeout) and the adapter's (which endpoint).
type Auth struct {
	Section                     string // auth_section
	Type                        string // auth_type
	URL                         string // auth_url
	Username                    string
	UserID                      string
	Password                    Secret
	UserDomainName              string
	UserDomainID                string
	ProjectName                 string
	ProjectID                   string
	ProjectDomainName           string
	ProjectDomainID             string
	DefaultDomainName           string
	DefaultDomainID             string
	DomainName                  string
	DomainID                    string
	SystemScope                 string
	TrustID                     string
	ApplicationCredentialID     string
	ApplicationCredentialName   string
	ApplicationCredentialSecret Secret
	Token                       Secret

	CAFile   string
	CertFile string
	KeyFile  string
	Insecure bool
	Timeout  time.Duration // 0 is no limit of its own

	ServiceType          string
	ServiceName          string
	ValidInterfaces      []string
	RegionName           string
	EndpointOverride     string
	ConnectRetries       int
	ConnectRetryDelay    time.Duration // 0: exponential from 0.5 s
	StatusCodeRetries    int
	StatusCodeRetryDelay time.Duration // 0: exponential from 0.5 s
	RetriableStatusCodes []int         // empty is 503
}

// Cinder is section [cinder].
type Cinder struct {
	Auth             Auth
	CatalogInfo      string // type:name:interface
	EndpointTemplate string
	OSRegionName     string
	HTTPRetries      int
	CrossAZAttach    bool
	Debug            bool
}

// Compute is section [compute].
type Compute struct {
	ConsecutiveBuildServiceDisableThreshold int
	CPUDedicatedSet                         CPUSet
	CPUSharedSet                            CPUSet
	ImageTypeExcludeList                    []string
	LiveMigrationWaitForVIFPlug             bool
	MaxConcurrentDiskOps                    int // 0 is unlimited
	MaxDiskDevicesToAttach                  int // -1 is unlimited
	ProviderConfigLocation                  string
	ResourceProviderAssociationRefresh      time.Duration // 0 is never
	SharingProvidersMaxUUIDsPerRequest      int
	ShutdownRetryInterval                   time.Duration
}

// ConsoleAuth is section [consoleauth].
type ConsoleAuth struct {
	TokenTTL              time.Duration
	EnforceSessionTimeout bool
}

// FilterScheduler is section [filter_scheduler].
type FilterScheduler struct {
	TrackInstanceChanges bool
}

// Glance is section [glance].
type Glance struct {
	Auth                         Auth // session and adapter options; the token is the user's
	APIServers                   []string
	NumRetries                   int
	Debug                        bool
	VerifyGlanceSignatures       bool
	EnableCertificateValidation  bool
	DefaultTrustedCertificateIDs []string
}

// KeyManager is section [key_manager].
type KeyManager struct {
	Backend string
}

// Barbican is section [barbican].
type Barbican struct {
	BarbicanEndpoint     string
	BarbicanAPIVersion   string // "" is v1
	BarbicanEndpointType string // public, internal or admin
	BarbicanRegionName   string
	VerifySSL            bool
	VerifySSLPath        string
	SendServiceUserToken bool
}

// BarbicanServiceUser is section [barbican_service_user].
type BarbicanServiceUser struct {
	Auth Auth
}

// ImageCache is section [image_cache].
type ImageCache struct {
	ManagerInterval                       time.Duration // 0 is 60 s, -1 s is off
	SubdirectoryName                      string
	RemoveUnusedBaseImages                bool
	RemoveUnusedOriginalMinimumAgeSeconds time.Duration //nolint:staticcheck // named after the option
	RemoveUnusedResizedMinimumAgeSeconds  time.Duration //nolint:staticcheck // named after the option
	PrecacheConcurrency                   int
}

// Keystone is section [keystone].
type Keystone struct {
	Auth Auth
}

// NoInjection is the value of [libvirt] inject_partition that turns injection off.
const NoInjection = -2

// Libvirt is section [libvirt], as far as its options are about volumes,
// rescue, snapshots and root disks and not about libvirt.
type Libvirt struct {
	InjectKey             bool
	InjectPartition       int
	InjectPassword        bool
	ISCSIIface            string
	NFSMountOptions       string
	NFSMountPointBase     string
	NumVolumeScanTries    int
	RBDUser               string
	RescueImageID         string
	SnapshotsDirectory    string
	VolumeUseMultipath    bool
	WaitSoftRebootSeconds time.Duration //nolint:staticcheck // named after the option
}

// LXC is section [lxc], the agent's own.
type LXC struct {
	Release                  string // "auto" or a release's name in lower case, e.g. "zed"
	StateDir                 string
	InstancesDir             string
	ImageDir                 string
	ConsoleDir               string
	StorageBackend           string   // overlay, dir or btrfs
	ExtraPools               []Pool   // further places for root disks
	ImagePools               []string // those of them that images may choose
	SnapshotCompression      string   // zst, xz, gz or none
	RootDiskDefaultGB        int      // for flavors with a root disk of 0; 0 is no quota
	RootDiskMaxGB            int      // 0 is no limit
	RootDiskQuota            string   // file or project
	RootDiskInodesPerGB      int      // 0 is the file system's default
	IDRange                  *IDRange // nil: root's ranges of /etc/subuid and /etc/subgid
	IDsPerInstance           uint32
	AllowPrivileged          bool
	DefaultPidsLimit         int   // 0 is no limit
	ConsoleLogSize           int64 // bytes
	MaxImageEntries          int
	MaxImageSizeGB           int
	ImageUnpackTimeout       time.Duration
	ImageStallTimeout        time.Duration
	ImageReserveMB           int // free space that an import leaves
	ImageDownloadConcurrency int
	ImageCacheMaxGB          int // 0 is no cap
	MigrationAddress         string
	MigrationPort            int    // 0: any free one
	MigrationBandwidth       int    // MiB a second; 0 is no limit
	LXCFS                    string // auto, on, off
	AppArmor                 string // auto, off, or a profile's name
	SeccompProfile           string // "" is the built-in one
	Shares                   []Share
	MetricsListen            string // host:port; "" is off
}

// MKS is section [mks].
type MKS struct {
	Enabled bool
}

// Neutron is section [neutron].
type Neutron struct {
	Auth                      Auth
	OVSBridge                 string
	DefaultFloatingPool       string
	ExtensionSyncInterval     time.Duration
	HTTPRetries               int
	Physnets                  []string
	ServiceMetadataProxy      bool
	MetadataProxySharedSecret Secret
}

// Notifications is section [notifications].
type Notifications struct {
	NotificationFormat           string // unversioned, versioned, both
	NotifyOnStateChange          string // "", vm_state, vm_and_task_state
	DefaultLevel                 string
	VersionedNotificationsTopics []string
	BDMsInNotifications          bool
	IncludeShareMapping          bool
}

// OSVIFLinuxBridge is section [os_vif_linux_bridge].
type OSVIFLinuxBridge struct {
	FlatInterface    string
	NetworkDeviceMTU int
	VLANInterface    string
}

// OSVIFOVS is section [os_vif_ovs].
type OSVIFOVS struct {
	DefaultQoSType   string
	IsolateVIF       bool
	NetworkDeviceMTU int
	OVSDBConnection  string
	OVSVsctlTimeout  time.Duration
	PerPortBridge    bool
}

// MessagingNotifications is section [oslo_messaging_notifications].
type MessagingNotifications struct {
	Driver       []string // empty and noop: nothing leaves
	TransportURL Secret   // "" is [DEFAULT] transport_url
	Topics       []string
	Retry        int // -1 is for ever
}

// RabbitMQ is section [oslo_messaging_rabbit].
type RabbitMQ struct {
	AMQPAutoDelete                   bool
	AMQPDurableQueues                bool
	DirectMandatoryFlag              bool
	EnableCancelOnFailover           bool
	HeartbeatRate                    int
	HeartbeatTimeoutThreshold        time.Duration // 0 is off
	Hostname                         string
	Processname                      string
	KombuCompression                 string
	KombuFailoverStrategy            string
	KombuMissingConsumerRetryTimeout time.Duration
	KombuReconnectDelay              time.Duration
	KombuReconnectSplay              time.Duration
	RabbitHAQueues                   bool
	RabbitIntervalMax                time.Duration
	RabbitLoginMethod                string
	RabbitQoSPrefetchCount           int
	RabbitQuorumDeliveryLimit        int
	RabbitQuorumMaxMemoryBytes       int
	RabbitQuorumMaxMemoryLength      int
	RabbitQuorumQueue                bool
	RabbitRetryBackoff               time.Duration
	RabbitRetryInterval              time.Duration
	RabbitStreamFanout               bool
	RabbitTransientQueuesTTL         time.Duration // 0 is no x-expires
	RabbitTransientQuorumQueue       bool
	SSL                              bool
	SSLCAFile                        string
	SSLCertFile                      string
	SSLKeyFile                       string
	SSLEnforceHostnameVerification   bool
	SSLVersion                       string
	UseQueueManager                  bool
}

// Placement is section [placement].
type Placement struct {
	Auth Auth
}

// SerialConsole is section [serial_console].
type SerialConsole struct {
	Enabled            bool
	BaseURL            string
	PortRange          PortRange
	ProxyclientAddress string
}

// ServiceUser is section [service_user].
type ServiceUser struct {
	Auth                 Auth
	SendServiceUserToken bool
}

// Spice is section [spice].
type Spice struct {
	Enabled bool
}

// UpgradeLevels is section [upgrade_levels]: caps of what the agent sends.
// Empty is the newest; else "auto", a version or a release's name.
type UpgradeLevels struct {
	BaseAPI   string
	Compute   string
	Conductor string
	Scheduler string
}

// VendordataDynamicAuth is section [vendordata_dynamic_auth].
type VendordataDynamicAuth struct {
	Auth Auth
}

// VNC is section [vnc].
type VNC struct {
	Enabled bool
}

// Workarounds is section [workarounds].
type Workarounds struct {
	DisableComputeServiceCheckForFFU       bool
	DisableDeepImageInspection             bool
	DisableFallbackPCPUQuery               bool
	DisableGroupPolicyCheckUpcall          bool
	HandleVirtLifecycleEvents              bool
	ReserveDiskResourceForImageCache       bool
	WaitForVIFPluggedEventDuringHardReboot []string
}

// CPUSet is a set of host CPU numbers in rising order; nil is "not configured".
type CPUSet []int

// Pool is a place for root disks beside instances_dir.
type Pool struct {
	Name       string // as flavors and images name it
	Backend    string // overlay, dir or btrfs
	Dir        string
	ReservedGB int // of its size, not for servers
}

// IDRange is a block of host ids: Base … Base+Size-1.
type IDRange struct {
	Base uint32
	Size uint32
}

// Share is a directory of the host that flavors may give to servers.
type Share struct {
	Name     string
	Path     string // absolute, without symbolic links
	ReadOnly bool
}

// PortRange is a range of TCP ports, both ends included.
type PortRange struct {
	First int
	Last  int
}
