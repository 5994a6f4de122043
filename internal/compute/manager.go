package compute

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/pack"
	"github.com/compute-agent/compute-agent/internal/compute/console"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/compute/journal"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/compute/plugging"
	"github.com/compute-agent/compute-agent/internal/compute/usage"
	"github.com/compute-agent/compute-agent/internal/configdrive"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/keylock"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/resource"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/transfer"
	"github.com/compute-agent/compute-agent/vif"
)

// Options are the manager's settings; each is named after its nova.conf option.
type Options struct {
	Host                 string // [DEFAULT] host: RPC server, Service.host, binding:host_id
	InstanceNameTemplate string
	OVSBridge            string          // [neutron] ovs_bridge
	HostArch             string          // Nova's name of the host's architecture
	Cgroups              hostinfo.Layout // of this host

	MaxConcurrentBuilds    int // 0: unlimited
	MaxConcurrentSnapshots int // 0: unlimited

	VIFPluggingTimeout time.Duration // 0: never wait for network-vif-plugged
	VIFPluggingIsFatal bool

	ShutdownTimeout       time.Duration // of a clean stop, unless the image says otherwise
	ShutdownRetryInterval time.Duration
	RebootTimeout         time.Duration // of a soft reboot's clean part

	ReportInterval          time.Duration
	UpdateResourcesInterval time.Duration // negative: off, 0: the default interval
	SyncPowerStateInterval  time.Duration
	HealInfoCacheInterval   time.Duration
	SchedulerSyncInterval   time.Duration
	RunningDeletedInterval  time.Duration
	RunningDeletedAction    string // reap, log, noop or shutdown
	RunningDeletedTimeout   time.Duration
	InstanceBuildTimeout    time.Duration
	ReclaimInstanceInterval time.Duration
	PeriodicFuzzyDelay      time.Duration
	TrackInstanceChanges    bool // [filter_scheduler] track_instance_changes
	ResumeGuestsOnHostBoot  bool // [DEFAULT] resume_guests_state_on_host_boot
	ShelvedPollInterval     time.Duration
	ShelvedOffloadTime      time.Duration // 0: at once, negative: never
	RescueTimeout           time.Duration // 0: off
	RescueImageID           string        // [libvirt] rescue_image_id
	SnapshotCompression     pack.Compression
	UploadRetries           int // [glance] num_retries
	DefaultAccessIPNetwork  string

	VerifySignatures    bool     // [glance] verify_glance_signatures
	ValidateCertificate bool     // [glance] enable_certificate_validation
	TrustedCertificates []string // [glance] default_trusted_certificate_ids

	ImageCacheInterval  time.Duration // [image_cache] manager_interval
	RemoveUnusedImages  bool          // [image_cache] remove_unused_base_images
	UnusedImageAge      time.Duration // [image_cache] remove_unused_original_minimum_age_seconds
	PrecacheConcurrency int           // [image_cache] precache_concurrency: images cached at the same time
	ImageCacheMaxBytes  int64         // [lxc] image_cache_max_gb; 0: no cap

	SerialConsole          console.SerialSettings
	UsageAudit             usage.Settings
	InstanceDeleteInterval time.Duration // negative: off, 0: the default interval

	ConfigDrive metadata.ConfigDrive
	Injection   inject.Settings

	RootDiskDefaultGB int // size for flavors with a root disk of 0; 0: no quota
	RootDiskMaxGB     int // largest root disk; 0: no limit

	Pools      []string // names of the storage pools beside the default one
	ImagePools []string // those that an image may choose

	DefaultEphemeralFormat string        // [DEFAULT] default_ephemeral_format
	EmptyImage             string        // directory of an image without files, for root disks that come without theirs
	ResizeConfirmWindow    time.Duration // 0: never

	IDPool         []storage.IDRange // root's subordinate ids
	IDsPerInstance uint32
	FlavorPolicy   flavor.Policy
}

// Deps are what the manager works with. All are required.
type Deps struct {
	Release   release.Release
	Conductor *conductor.Client
	Notify    *notify.Emitter
	Tracker   *resource.Tracker
	Placement *placement.Client
	Neutron   *neutron.Client
	Glance    *glance.Client
	Keys      glanceimage.KeyManager // has the certificates of signed images
	Driver    driver.Driver
	Roots     storage.Backend
	Ephemeral EphemeralStore
	Images    ImageStore
	Plugger   vif.Plugger
	Drives    DriveStore
	Shares    ShareStore
	DB        *state.DB
	Transfers *transfer.Server // root disks for other hosts
}

// ImageStore keeps the images of this host (imagesync.Store).
type ImageStore interface {
	Get(ctx context.Context, id string) (imagesync.Image, bool, error)
	List(ctx context.Context) ([]imagesync.Image, error)
	Sync(ctx context.Context, r imagesync.Request) (imagesync.Image, error)
	Hold(id string) (release func())
	Acquire(id, instanceUUID string) error
	Release(id, instanceUUID string) error
	Prune(ctx context.Context, p imagesync.Policy) ([]imagesync.Pruned, error)
}

// DriveStore keeps the config drives of this host (configdrive.Store).
type DriveStore interface {
	Path(instanceUUID string) string
	Write(ctx context.Context, instanceUUID string, owner uint32, documents []configdrive.Document) error
	Mount(instanceUUID string) error
	Unmount(ctx context.Context, instanceUUID string) error
	Remove(ctx context.Context, instanceUUID string) error
}

// Manager carries out the compute RPC API on one host.
type Manager struct {
	Deps
	opts Options

	locks     keylock.Locks // by instance UUID; taken before caches
	builds    *semaphore.Weighted
	snapshots *semaphore.Weighted
	waiters   plugging.Waiters

	begun     begunEvents
	running   background // operations that outlive their message
	departure departure  // the end of the agent

	journal    *journal.Journal // operations that were accepted and have not ended
	arrivals   arrivals         // root disks that come here
	departures departures       // root disks that this host offers

	consoles *console.Serial // nil: this host has none

	caches    keylock.Locks // by instance UUID: reading ports and storing them in the info cache
	refreshes refreshes

	storePause     time.Duration // between attempts to store a build's end; see store
	lostBuildWait  time.Duration // before a build that was sent here counts as lost; see failLostBuilds
	quiesceTimeout time.Duration // for a hook in a guest; see quiesce
	hurriedThaw    time.Duration // the same, of a guest that is to be deleted
}

// castTimeout bounds messages that nobody answers: while the broker is away they wait, as
// long as a call would for its answer (rpc_response_timeout's default).
const castTimeout = time.Minute

// New returns a manager. It starts nothing.
func New(o Options, d Deps) *Manager {
	return &Manager{
		Deps: d, opts: o,
		builds:     slots(o.MaxConcurrentBuilds),
		snapshots:  slots(o.MaxConcurrentSnapshots),
		departure:  newDeparture(),
		journal:    journal.New(d.DB),
		refreshes:  refreshes{waiting: map[string]bool{}},
		storePause: 10 * time.Second,
		// The conductor sends the builds of a request for many servers one after the other, when all of them have their hosts.
		lostBuildWait:  2 * time.Minute,
		quiesceTimeout: quiesceTimeout,
		hurriedThaw:    hurriedThaw,
		consoles:       console.NewSerial(o.SerialConsole, o.Host, d.Driver, d.Conductor, d.DB),
	}
}

// slots bounds how many operations of a kind run at the same time; 0 is nova's "unlimited".
func slots(limit int) *semaphore.Weighted {
	if limit <= 0 {
		return semaphore.NewWeighted(1 << 30)
	}
	return semaphore.NewWeighted(int64(limit))
}

// background runs fn apart from the message that asked for it: with the message's
// request context, but neither its deadline nor its cancellation.
func (m *Manager) background(ctx context.Context, fn func(ctx context.Context)) {
	m.running.run(func() { fn(context.WithoutCancel(ctx)) })
}

// Drain waits until every operation has ended, or ctx has. What still runs then is
// in the journal, and the next start takes it up. Waits for what may take long Leave cuts short, before.
func (m *Manager) Drain(ctx context.Context) error {
	m.arrivals.leave()
	return m.running.wait(ctx)
}

// adminContext is a context of the agent itself, for work that nobody asked for.
func adminContext(ctx context.Context) context.Context {
	return reqctx.With(ctx, reqctx.Admin())
}
