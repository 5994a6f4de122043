package main

import (
	"cmp"
	"errors"
	"path/filepath"
	"time"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver/lxc"
	"github.com/compute-agent/compute-agent/flavor"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/imagesync/pack"
	"github.com/compute-agent/compute-agent/internal/compute"
	"github.com/compute-agent/compute-agent/internal/compute/console"
	"github.com/compute-agent/compute-agent/internal/compute/inject"
	"github.com/compute-agent/compute-agent/internal/compute/metadata"
	"github.com/compute-agent/compute-agent/internal/compute/usage"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/resource"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/transfer"
	"github.com/compute-agent/compute-agent/rpc/rabbit"
)

// This file turns the configuration into the options of each package, which know nothing of it.

func rabbitOptions(c *config.Config, url config.Secret) (rabbit.Options, error) {
	r := &c.RabbitMQ
	o := rabbit.Defaults()
	o.FailoverStrategy, o.LoginMethod = r.KombuFailoverStrategy, r.RabbitLoginMethod
	o.TLS = rabbit.TLS{
		Enabled: r.SSL, Version: r.SSLVersion, CAFile: r.SSLCAFile, CertFile: r.SSLCertFile, KeyFile: r.SSLKeyFile,
		VerifyHostname: r.SSLEnforceHostnameVerification,
	}
	o.Heartbeat = r.HeartbeatTimeoutThreshold
	o.RetryInterval, o.RetryBackoff, o.IntervalMax = r.RabbitRetryInterval, r.RabbitRetryBackoff, r.RabbitIntervalMax
	o.ReconnectDelay, o.ReconnectSplay = r.KombuReconnectDelay, r.KombuReconnectSplay
	o.Compression, o.Prefetch, o.DirectMandatory = r.KombuCompression, r.RabbitQoSPrefetchCount, r.DirectMandatoryFlag
	o.Durable, o.AutoDelete, o.HAQueues = r.AMQPDurableQueues, r.AMQPAutoDelete, r.RabbitHAQueues
	o.QuorumQueue, o.TransientQuorumQueue = r.RabbitQuorumQueue, r.RabbitTransientQuorumQueue
	o.QuorumDeliveryLimit, o.QuorumMaxMemoryLength, o.QuorumMaxMemoryBytes = r.RabbitQuorumDeliveryLimit, r.RabbitQuorumMaxMemoryLength, r.RabbitQuorumMaxMemoryBytes
	o.StreamFanout, o.CancelOnFailover, o.TransientTTL = r.RabbitStreamFanout, r.EnableCancelOnFailover, r.RabbitTransientQueuesTTL
	return o.WithURL(url.Reveal())
}

func driverOptions(c *config.Config) lxc.Options {
	profile := c.LXC.AppArmor
	if profile == "off" {
		profile = lxc.ModeUnconfined
	}
	return lxc.Options{
		StateDir: c.LXC.StateDir, LogDir: c.LXC.ConsoleDir, ConsoleSize: c.LXC.ConsoleLogSize,
		AppArmor: profile, SeccompProfile: c.LXC.SeccompProfile, LXCFS: c.LXC.LXCFS,
		AllowPrivileged: c.LXC.AllowPrivileged,
	}
}

func imageOptions(c *config.Config) imagesync.Options {
	return imagesync.Options{
		Dir: c.LXC.ImageDir, MaxImageBytes: int64(c.LXC.MaxImageSizeGB) << 30, MaxUnpackedBytes: int64(c.LXC.MaxImageSizeGB) << 30,
		MaxEntries: c.LXC.MaxImageEntries, ReserveBytes: int64(c.LXC.ImageReserveMB) << 20,
		Timeout: c.LXC.ImageUnpackTimeout, StallTimeout: c.LXC.ImageStallTimeout, Retries: 1 + c.Glance.NumRetries, Parallel: c.LXC.ImageDownloadConcurrency,
	}
}

func transferOptions(c *config.Config) transfer.Options {
	return transfer.Options{Address: c.LXC.MigrationAddress, Port: c.LXC.MigrationPort, Rate: int64(c.LXC.MigrationBandwidth) << 20}
}

// authOptions are the credentials of a section.
func authOptions(section string, a *config.Auth) openstack.AuthOptions {
	return openstack.AuthOptions{
		Section: section, Type: a.Type, URL: a.URL, Username: a.Username, UserID: a.UserID,
		Password: reqctx.Secret(a.Password.Reveal()), UserDomainName: a.UserDomainName, UserDomainID: a.UserDomainID,
		DefaultDomainName: a.DefaultDomainName, DefaultDomainID: a.DefaultDomainID,
		ProjectName: a.ProjectName, ProjectID: a.ProjectID, ProjectDomainName: a.ProjectDomainName, ProjectDomainID: a.ProjectDomainID,
		DomainName: a.DomainName, DomainID: a.DomainID, SystemScope: a.SystemScope, TrustID: a.TrustID,
		ApplicationCredentialID: a.ApplicationCredentialID, ApplicationCredentialName: a.ApplicationCredentialName,
		ApplicationCredentialSecret: reqctx.Secret(a.ApplicationCredentialSecret.Reveal()), Token: reqctx.Secret(a.Token.Reveal()),
		TLS: tlsOptions(a), Timeout: a.Timeout, ConnectRetries: a.ConnectRetries,
	}
}

func tlsOptions(a *config.Auth) openstack.TLSOptions {
	return openstack.TLSOptions{CAFile: a.CAFile, CertFile: a.CertFile, KeyFile: a.KeyFile, Insecure: a.Insecure}
}

// serviceOptions are the endpoint of a section's service, of a type and API version.
func serviceOptions(section string, a *config.Auth, apiVersion string, session, serviceUser *openstack.Session) openstack.ServiceOptions {
	return openstack.ServiceOptions{
		Section: section, Session: session, ServiceUser: serviceUser, Types: []string{a.ServiceType}, Name: a.ServiceName, Version: apiVersion,
		Interfaces: a.ValidInterfaces, Region: a.RegionName, EndpointOverride: a.EndpointOverride, TLS: tlsOptions(a), Timeout: a.Timeout,
		ConnectRetries: a.ConnectRetries, ConnectRetryDelay: a.ConnectRetryDelay,
		StatusCodeRetries: a.StatusCodeRetries, RetriableStatusCodes: a.RetriableStatusCodes,
	}
}

// barbicanOptions are the endpoint of the key manager, whose options are castellan's and not keystoneauth's.
func barbicanOptions(c *config.Config, pool *openstack.Pool) openstack.ServiceOptions {
	b := &c.Barbican
	o := openstack.ServiceOptions{
		Section: "barbican", Types: []string{"key-manager"}, Version: cmp.Or(b.BarbicanAPIVersion, "v1"), Interfaces: []string{b.BarbicanEndpointType},
		Region: b.BarbicanRegionName, EndpointOverride: b.BarbicanEndpoint,
	}
	if b.VerifySSL {
		o.TLS.CAFile = b.VerifySSLPath
	} else {
		o.TLS.Insecure = true
	}
	if b.SendServiceUserToken {
		o.ServiceUser = pool.Session(authOptions("barbican_service_user", &c.BarbicanServiceUser.Auth))
	}
	return o
}

func trackerOptions(c *config.Config, sources config.Sources, r release.Release, kind string, kindVersion int) resource.Options {
	d := &c.Default
	return resource.Options{
		Host: d.Host, HostIP: d.MyIP, NodeName: d.Host, StatePath: d.StatePath, IdentityDirs: identityDirs(c, sources),
		HypervisorType: kind, HypervisorVersion: kindVersion, CPUs: len(c.Compute.CPUSharedSet),
		ReservedCPUs: d.ReservedHostCPUs, ReservedMemoryMB: d.ReservedHostMemoryMB, ReservedDiskMB: d.ReservedHostDiskMB,
		CPURatio: d.CPUAllocationRatio, RAMRatio: d.RAMAllocationRatio, DiskRatio: d.DiskAllocationRatio,
		InitialCPURatio: valueOr(d.InitialCPUAllocationRatio, r.InitialCPURatio), InitialRAMRatio: valueOr(d.InitialRAMAllocationRatio, r.InitialRAMRatio),
		InitialDiskRatio:  d.InitialDiskAllocationRatio,
		CountFailedBuilds: c.Compute.ConsecutiveBuildServiceDisableThreshold != 0,
		ProviderRefresh:   c.Compute.ResourceProviderAssociationRefresh,
		Pools:             trackedPools(c),
	}
}

// trackedPools are the pools as the books have them.
func trackedPools(c *config.Config) []resource.Pool {
	pools := make([]resource.Pool, 0, len(c.LXC.ExtraPools))
	for _, p := range c.LXC.ExtraPools {
		pools = append(pools, resource.Pool{Name: p.Name, ReservedGB: p.ReservedGB})
	}
	return pools
}

func poolNames(c *config.Config) []string {
	names := make([]string, 0, len(c.LXC.ExtraPools))
	for _, p := range c.LXC.ExtraPools {
		names = append(names, p.Name)
	}
	return names
}

// identityDirs are where nova looks for the node's UUID.
func identityDirs(c *config.Config, sources config.Sources) []string {
	dirs := []string{c.Default.StatePath}
	files := sources.Files
	if len(files) == 0 {
		files = config.DefaultFiles()
	}
	for _, file := range files {
		dirs = append(dirs, filepath.Dir(file))
	}
	return dirs
}

func managerOptions(c *config.Config, r release.Release, host hostinfo.Info, pool []storage.IDRange) compute.Options {
	d := &c.Default
	return compute.Options{
		Host: d.Host, InstanceNameTemplate: d.InstanceNameTemplate, OVSBridge: c.Neutron.OVSBridge, HostArch: host.Arch, Cgroups: host.Cgroups,
		MaxConcurrentBuilds: d.MaxConcurrentBuilds, MaxConcurrentSnapshots: d.MaxConcurrentSnapshots,
		VIFPluggingTimeout: d.VIFPluggingTimeout, VIFPluggingIsFatal: d.VIFPluggingIsFatal,
		ShutdownTimeout: d.ShutdownTimeout, ShutdownRetryInterval: c.Compute.ShutdownRetryInterval, RebootTimeout: rebootTimeout(c),
		UpdateResourcesInterval: d.UpdateResourcesInterval, SyncPowerStateInterval: d.SyncPowerStateInterval,
		HealInfoCacheInterval: offWhenZero(valueOr(d.HealInstanceInfoCacheInterval, r.HealInterval)),
		SchedulerSyncInterval: d.SchedulerInstanceSyncInterval, RunningDeletedInterval: d.RunningDeletedInstancePollInterval,
		InstanceBuildTimeout: d.InstanceBuildTimeout, ReclaimInstanceInterval: d.ReclaimInstanceInterval,
		RunningDeletedAction: d.RunningDeletedInstanceAction, RunningDeletedTimeout: d.RunningDeletedInstanceTimeout, PeriodicFuzzyDelay: d.PeriodicFuzzyDelay,
		TrackInstanceChanges: c.FilterScheduler.TrackInstanceChanges, ResumeGuestsOnHostBoot: d.ResumeGuestsStateOnHostBoot,
		DefaultAccessIPNetwork: d.DefaultAccessIPNetworkName,
		ImageCacheInterval:     c.ImageCache.ManagerInterval, RemoveUnusedImages: c.ImageCache.RemoveUnusedBaseImages,
		UnusedImageAge: c.ImageCache.RemoveUnusedOriginalMinimumAgeSeconds, PrecacheConcurrency: c.ImageCache.PrecacheConcurrency,
		VerifySignatures: c.Glance.VerifyGlanceSignatures, ValidateCertificate: c.Glance.EnableCertificateValidation, TrustedCertificates: c.Glance.DefaultTrustedCertificateIDs,
		ImageCacheMaxBytes: int64(c.LXC.ImageCacheMaxGB) << 30,
		SerialConsole: console.SerialSettings{
			Enabled: c.SerialConsole.Enabled, BaseURL: c.SerialConsole.BaseURL, Address: c.SerialConsole.ProxyclientAddress,
			First: c.SerialConsole.PortRange.First, Last: c.SerialConsole.PortRange.Last, TokenTTL: c.ConsoleAuth.TokenTTL,
		},
		UsageAudit:             usage.Settings{Enabled: d.InstanceUsageAudit, Period: d.InstanceUsageAuditPeriod},
		InstanceDeleteInterval: d.InstanceDeleteInterval,
		ShelvedPollInterval:    d.ShelvedPollInterval, ShelvedOffloadTime: d.ShelvedOffloadTime, RescueTimeout: d.RescueTimeout, RescueImageID: c.Libvirt.RescueImageID,
		SnapshotCompression: snapshotCompression(c), UploadRetries: c.Glance.NumRetries,
		DefaultEphemeralFormat: d.DefaultEphemeralFormat,
		RootDiskDefaultGB:      c.LXC.RootDiskDefaultGB, RootDiskMaxGB: c.LXC.RootDiskMaxGB,
		Pools: poolNames(c), ImagePools: c.LXC.ImagePools,
		ConfigDrive: metadata.ConfigDrive{
			Force: d.ForceConfigDrive, DHCPDomain: c.API.DHCPDomain, SkipVersions: c.API.ConfigDriveSkipVersions,
			VendordataProviders: c.API.VendordataProviders, VendordataFile: c.API.VendordataJSONFilePath,
		},
		Injection:           inject.Settings{Enabled: c.Libvirt.InjectPartition != config.NoInjection, Key: c.Libvirt.InjectKey, Password: c.Libvirt.InjectPassword},
		ResizeConfirmWindow: d.ResizeConfirmWindow, EmptyImage: filepath.Join(c.LXC.StateDir, "empty-image"),
		IDPool: pool, IDsPerInstance: c.LXC.IDsPerInstance,
		FlavorPolicy: flavor.Policy{AllowPrivileged: c.LXC.AllowPrivileged, DefaultPIDs: int64(c.LXC.DefaultPidsLimit)},
	}
}

// rebootTimeout is how long a soft reboot may take before it becomes a hard one: [libvirt]
// wait_soft_reboot_seconds, or [DEFAULT] reboot_timeout if that comes first.
func rebootTimeout(c *config.Config) time.Duration {
	if limit := c.Default.RebootTimeout; limit > 0 {
		return min(limit, c.Libvirt.WaitSoftRebootSeconds)
	}
	return c.Libvirt.WaitSoftRebootSeconds
}

// snapshotCompression reads [lxc] snapshot_compression, whose values the configuration has checked.
func snapshotCompression(c *config.Config) pack.Compression {
	compression, err := pack.ParseCompression(c.LXC.SnapshotCompression)
	if err != nil {
		panic(err) // a programmer's mistake: the two lists differ
	}
	return compression
}

// idPool is the pool of host ids for instances: the operator's, else what root may map.
func idPool(c *config.Config) ([]storage.IDRange, error) {
	if c.LXC.IDRange != nil {
		return []storage.IDRange{{Base: c.LXC.IDRange.Base, Size: c.LXC.IDRange.Size}}, nil
	}
	pool, err := hostinfo.SubordinateIDs("root")
	if err != nil {
		return nil, err
	}
	if len(pool) == 0 {
		return nil, errors.New("root has no subordinate ids in /etc/subuid and /etc/subgid, so no container could have a user namespace; " +
			"run: usermod --add-subuids 1000000-1000999999 --add-subgids 1000000-1000999999 root, or set [lxc] id_range")
	}
	ranges := make([]storage.IDRange, 0, len(pool))
	for _, p := range pool {
		ranges = append(ranges, storage.IDRange{Base: p.Base, Size: p.Size})
	}
	return ranges, nil
}

func valueOr[T any](set *T, otherwise T) T {
	if set != nil {
		return *set
	}
	return otherwise
}

// offWhenZero maps an interval of which nova takes 0 for "off" to the negative value that
// other tasks use for that.
func offWhenZero(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}
