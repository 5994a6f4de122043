package config

import (
	"errors"
	"net"
	"strconv"
	"strings"
)

// lxcSection is the agent's own section.
const lxcSection = "lxc"

// releaseNames gives the names of a control plane's release that [lxc] release takes.
var releaseNames = map[string]string{
	"zed": "zed", "antelope": "antelope", "bobcat": "bobcat", "caracal": "caracal", "dalmatian": "dalmatian",
	"epoxy": "epoxy", "flamingo": "flamingo", "gazpacho": "gazpacho", "hibiscus": "hibiscus",
	"2023.1": "antelope", "2023.2": "bobcat", "2024.1": "caracal", "2024.2": "dalmatian",
	"2025.1": "epoxy", "2025.2": "flamingo", "2026.1": "gazpacho", "2026.2": "hibiscus",
}

// lxc declares section [lxc].
func (r *registry) lxc() {
	s := r.section(lxcSection, "The agent itself: containers, root disks, images. An unknown option in this section is a warning.")
	x := &r.config.LXC
	bind(s, &x.Release, "release", "auto, or a release from zed to hibiscus or 2023.1 to 2026.2", "auto", "Release of the control plane; auto asks it.",
		func(_ *option, v string) (string, error) { return parseRelease(v) })
	lxcDirectories(s, x)
	lxcContainers(s, x)
	lxcImages(s, x)
	lxcMoves(s, x)
	s.pattern(&x.MetricsListen, "metrics_listen", kindListen, "", "Address on which metrics are served over HTTP (see docs/metrics.md); unset is off."+
		" There is no authentication: use a loopback or management address.", checkListen)
}

func lxcDirectories(s *section, x *LXC) {
	s.path(&x.StateDir, "state_dir", "$state_path/compute-agent", "Directory of the agent's records; everything below follows unless it is set.")
	s.path(&x.InstancesDir, "instances_dir", "$state_dir/instances", "Directory of root disks and containers; its file system's size is the host's disk.")
	s.path(&x.ImageDir, "image_dir", "$state_dir/images", "Directory of the image store.")
	s.path(&x.ConsoleDir, "console_dir", "$state_dir/consoles", "Directory of the containers' console logs and of what liblxc logs of them.")
}

func lxcContainers(s *section, x *LXC) {
	s.enum(&x.StorageBackend, "storage_backend", "overlay", "How root disks are made: overlay shares the unpacked image and gives each"+
		" instance a layer of its own; dir copies the image; btrfs shares its blocks, with instances_dir on that file system.", storageBackends...)
	bind(s, &x.ExtraPools, "extra_pools", kindPools, "", "Further places for root disks, which flavors choose by their extra spec lxc:pool: name, back end (as"+
		" storage_backend has them), an existing directory, and how many GB of its file system are not for servers, 0 unless given. Each is a resource class"+
		" CUSTOM_LXC_POOL_<NAME> of this host in Placement.",
		func(_ *option, v string) ([]Pool, error) { return parsePools(v) })
	s.list(&x.ImagePools, "image_pools", "", "Those of extra_pools that an image may choose too, by its property lxc_pool, for flavors that name none.")
	s.integer(&x.RootDiskDefaultGB, "root_disk_default_gb", 0, "Size of the root disk, in GB, when the flavor says 0; 0 sets no limit but the host's.").atLeast(0)
	s.integer(&x.RootDiskMaxGB, "root_disk_max_gb", 0, "Largest root disk, in GB, that an instance may have here; 0 is no limit.").atLeast(0)
	s.enum(&x.RootDiskQuota, "root_disk_quota", "file", "What bounds root disks of the back ends overlay and dir that are made from now on: file is a file system of"+
		" the flavor's size in a file; project is a project quota of the pools' file systems, ext4 or xfs, which must be mounted with prjquota. Not"+
		" with allow_privileged: a privileged container's root may lift such a quota.", "file", "project")
	s.integer(&x.RootDiskInodesPerGB, "root_disk_inodes_per_gb", 0, "Files and directories per GB of root disk; 0 is the file system's default of 65536.").atLeast(0).atMost(1 << 20)
	bind(s, &x.IDRange, "id_range", kindIDs, "", "Host user and group ids that instances are mapped to.",
		func(_ *option, v string) (*IDRange, error) { return parseIDs(v) }).
		none("root's ranges in /etc/subuid and /etc/subgid")
	s.uint32(&x.IDsPerInstance, "ids_per_instance", 65536, "Ids that each instance gets out of the range.").atLeast(65536).atMost(1 << 31)
	s.boolean(&x.AllowPrivileged, "allow_privileged", false, "Whether a flavor may ask for a privileged container, whose root is the host's root."+
		" The flavor must ask for it too.")
	s.integer(&x.DefaultPidsLimit, "default_pids_limit", 10000, "Processes of an instance unless its flavor says otherwise; 0 is no limit.").atLeast(0)
	s.bytes(&x.ConsoleLogSize, "console_log_size", 1<<20, "Size of an instance's console log; the oldest part goes first.").atLeast(4096).atMost(1 << 30)
	s.enum(&x.LXCFS, "lxcfs", "auto", "Whether guests see their own limits in /proc through lxcfs: auto if it runs on the host, on to require it.", "auto", "on", "off")
	s.text(&x.AppArmor, "apparmor", "auto", "AppArmor profile of containers: auto has liblxc generate one where the host can, off goes"+
		" without, anything else is a profile's name.")
	s.path(&x.SeccompProfile, "seccomp_profile", "", "File with a seccomp policy instead of the built-in one.").none("the built-in policy")
	bind(s, &x.Shares, "shares", kindShares, "", "Directories of the host that flavors may give to servers, by the extra spec lxc:share:NAME=/path/inside."+
		" With :ro servers can only read there. A path must lead through no symbolic link.",
		func(_ *option, v string) ([]Share, error) { return parseShares(v) }).
		none("no directories")
}

func lxcImages(s *section, x *LXC) {
	s.integer(&x.MaxImageEntries, "max_image_entries", 2000000, "Files and directories that an image may unpack to.").atLeast(1)
	s.integer(&x.MaxImageSizeGB, "max_image_size_gb", 100, "Size in GB that an image may have, packed or unpacked.").atLeast(1)
	s.seconds(&x.ImageUnpackTimeout, "image_unpack_timeout", 1800, "Time for an image to be downloaded and unpacked, which happens in one pass.").atLeast(1)
	s.seconds(&x.ImageStallTimeout, "image_stall_timeout", 60, "Silence after which the connection of a download is made anew; it goes on where it was.").atLeast(1)
	s.integer(&x.ImageReserveMB, "image_reserve_mb", 256, "Free space in MB that must be left in the file system of image_dir by an image that is unpacked there.").atLeast(1)
	s.enum(&x.SnapshotCompression, "snapshot_compression", "zst", "How images of servers are compressed: zst is quick, xz small, gz read by"+
		" everything.", "zst", "xz", "gz", "none")
	s.integer(&x.ImageDownloadConcurrency, "image_download_concurrency", 2, "Images that are downloaded at the same time.").atLeast(1)
	s.integer(&x.ImageCacheMaxGB, "image_cache_max_gb", 0, "Size in GB on the disk above which unused images are removed, the least recently"+
		" used first, at every turn of [image_cache] manager_interval; 0 is no cap. Images in use count and stay.").atLeast(0).atMost(1 << 30)
}

func lxcMoves(s *section, x *LXC) {
	s.ip(&x.MigrationAddress, "migration_address", "$my_ip", "Address at which other hosts fetch the root disks of servers that are resized or migrated to them.")
	s.integer(&x.MigrationPort, "migration_port", 16525, "TCP port for that; the agent listens while a server leaves this host, and only then. 0 takes any free port.").
		atLeast(0).atMost(65535)
	s.integer(&x.MigrationBandwidth, "migration_bandwidth", 0, "MiB a second that may leave this host in this way, all servers together; 0 is no limit.").
		atLeast(0).atMost(1 << 20)
}

// parseRelease gives the canonical name of a release; a code in front of it, as in "2025.1 Epoxy", is fine.
func parseRelease(v string) (string, error) {
	v = strings.ToLower(v)
	if v == "auto" {
		return v, nil
	}
	code, rest, ok := strings.Cut(v, " ")
	release, known := releaseNames[code]
	if !known || ok && releaseNames[strings.TrimSpace(rest)] != release {
		return "", errors.New("not a known release")
	}
	return release, nil
}

func checkListen(v string) error {
	if v == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errors.New("not host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("not host:port")
	}
	return nil
}
